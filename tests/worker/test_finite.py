"""An update whose loss or gradient is not a number leaves no trace but in the record."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from daemon.core import files
from daemon.core.paths import Workspace
from daemon.models import checkpoints
from daemon.worker.finite import NotFinite
from daemon.worker.train import Training
from daemon.worker.trainer import JobTrainer
from tests.worker.test_saving import make_training

AT = 3  # the update that is disturbed, counted from 1; there are six of four rows
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch")


def nan_in_the_loss(trainer: JobTrainer, steps: set[int]) -> None:
    real = trainer.token_losses

    def losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return real(model, batch) * (torch.nan if trainer.state.global_step + 1 in steps else 1.0)

    trainer.token_losses = losses  # type: ignore[assignment]


def nan_in_one_gradient(trainer: JobTrainer, steps: set[int]) -> None:
    weight = next(iter(trainer.language_model.parameters()))
    weight.register_hook(lambda g: g * torch.nan if trainer.state.global_step + 1 in steps else g)


class Dropped(TrainerCallback):
    """Trains without an update: its gradients are gone before the optimizer's step."""

    def __init__(self, trainer: JobTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == AT:
            self._trainer.language_model.zero_grad()


def without_it(trainer: JobTrainer, steps: set[int]) -> None:
    trainer.add_callback(Dropped(trainer))


def train(root: Path, optimizer: str, disturb: Callable[[JobTrainer, set[int]], None], steps: set[int]) -> Training:
    training = make_training(root, training_args={"optim": optimizer}, logging_steps=2)
    disturb(training._trainer, steps)
    try:
        training.run()
        training.finish()
    finally:
        training.saver.close()
    return training


def seal(training: Training) -> list[str]:
    folder = training.saver.workspace.checkpoint(6)
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model.safetensors", "optimizer.pt")]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("disturb", [nan_in_the_loss, nan_in_one_gradient])
def test_weights_and_optimizer_are_those_of_a_training_without_the_update(
    disturb: Callable[[JobTrainer, set[int]], None], optimizer: str, tmp_path: Path
) -> None:
    training = train(tmp_path / "disturbed", optimizer, disturb, {AT})
    assert seal(training) == seal(train(tmp_path / "without", optimizer, without_it, {AT}))
    assert seal(training) != seal(train(tmp_path / "calm", optimizer, disturb, set()))
    folder = training.saver.workspace.checkpoint(6)
    manifest = checkpoints.read(folder)
    assert manifest and manifest.skipped_updates == 1 and manifest.rows_consumed == 20
    log = list(files.read_lines(tmp_path / "disturbed/runs/job/log.jsonl"))
    (skipped,) = [line for line in log if line.get("event") == "update_skipped"]
    assert skipped["job_step"] == AT and "NaN" in (skipped["loss"], skipped["grad_norm"])
    trained = (folder / checkpoints.CONSUMED).read_bytes()
    lines = [int.from_bytes(trained[i : i + 4], "little") for i in range(0, len(trained), 4)]
    assert sorted(lines + skipped["lines"]) == list(range(1, 25))
    assert [line["skipped_updates"] for line in log if line["kind"] == "log"] == [0, 1, 1]
    assert all(0 < line["loss"] < 100 for line in log if line["kind"] == "log")


def test_too_many_in_a_row_end_the_attempt_with_their_rows(tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match=r"4 updates in a row .* lines \[") as raised:
        train(tmp_path / "w", OPTIMIZERS[0], nan_in_the_loss, {2, 3, 4, 5, 6})
    assert len(str(raised.value).split("[")[1].split(",")) == 16
    assert checkpoints.every(Workspace(tmp_path / "w")) == []


def test_where_every_update_of_a_line_was_skipped_its_loss_is_no_number(tmp_path: Path) -> None:
    train(tmp_path / "w", OPTIMIZERS[0], nan_in_the_loss, {3, 4})
    log = list(files.read_lines(tmp_path / "w/runs/job/log.jsonl"))
    assert [line["loss"] == "NaN" for line in log if line["kind"] == "log"] == [False, True, False]
