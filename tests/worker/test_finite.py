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
from tests.helpers_training import At, Going, make_attempt, make_place, make_training, run

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


def test_nothing_is_saved_among_skipped_updates_so_that_another_try_begins_before_them(tmp_path: Path) -> None:
    training = make_training(tmp_path / "w", save_steps=1, save_min_seconds=0)
    nan_in_the_loss(training._trainer, {3, 4, 5})
    training.run()
    training.finish()
    training.saver.close()
    log = list(files.read_lines(tmp_path / "w/runs/job/log.jsonl"))
    saved = {line["job_step"] for line in log if line.get("event") == "saved"}
    assert 6 in saved and saved <= {1, 2, 6} and len(saved) > 1


def test_who_goes_on_among_skipped_updates_counts_those_before(tmp_path: Path) -> None:
    workspace = make_place(tmp_path / "w")
    first = make_attempt(workspace)
    nan_in_the_loss(first._trainer, {3, 4, 5, 6})
    first._trainer.add_callback(At(4, lambda: first._step.save(final=False, wait=True)))
    with pytest.raises(NotFinite):
        run(first)
    second = make_attempt(workspace, Going(resume="current_model/checkpoint-4"))
    nan_in_the_loss(second._trainer, {5, 6})
    with pytest.raises(NotFinite, match="4 updates in a row"):
        run(second)


def test_rows_that_are_left_out_are_not_trained_and_an_update_without_rows_changes_nothing(tmp_path: Path) -> None:
    whole = make_training(tmp_path / "whole")
    of_update = [int(whole._rows.lines[row]) for _, row in whole._stream.update(AT - 1)]
    run(whole)
    without = train(tmp_path / "without", OPTIMIZERS[0], without_it, {AT})
    left_out = make_attempt(make_place(tmp_path / "left"), Going(assigned={"left_out": of_update}))
    run(left_out)
    assert seal(left_out) == seal(without) != seal(whole)
    trained = (left_out.saver.workspace.checkpoint(6) / checkpoints.CONSUMED).read_bytes()
    lines = {int.from_bytes(trained[i : i + 4], "little") for i in range(0, len(trained), 4)}
    assert lines == set(range(1, 25)) - set(of_update)
    log = list(files.read_lines(tmp_path / "left/runs/job/log.jsonl"))
    assert all(0 < line["loss"] < 100 for line in log if line["kind"] == "log")


def test_the_rate_is_changed_from_its_step_on(tmp_path: Path) -> None:
    changes = [{"from_step": 2, "factor": 0.5}, {"from_step": 4, "factor": 0.25}]
    settings = {"logging_steps": 1, "warmup_steps": 0, "learning_rate": 1e-4}
    training = make_attempt(make_place(tmp_path / "w"), Going(assigned={"rate_changes": changes}), **settings)
    run(training)
    log = list(files.read_lines(tmp_path / "w/runs/job/log.jsonl"))
    rates = [line["learning_rate"] for line in log if line["kind"] == "log"]
    assert rates == pytest.approx([1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5, 2.5e-5])


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    training = make_training(tmp_path / "w", save_steps=2, save_min_seconds=0)
    weight = next(iter(training._model.parameters()))
    training._trainer.add_callback(At(3, lambda: weight.data.fill_(torch.inf)))
    with pytest.raises(NotFinite):
        run(training)
    assert [folder.name for folder in checkpoints.every(Workspace(tmp_path / "w"))] == ["checkpoint-2"]
