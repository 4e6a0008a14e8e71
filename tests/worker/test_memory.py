"""Out of memory leaves no trace of the update in which it came."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from daemon.core.attempts import Evaluation
from daemon.core.errors import WorkerExit
from daemon.models import checkpoints
from daemon.worker import memory
from daemon.worker.memory import is_exhausted
from daemon.worker.train import Training
from tests.helpers_training import Going, make_attempt, make_place, run
from tests.worker.test_exactness import change_model

NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory.")


def fail_in_backward(training: Training, update: int, micro_batch: int, most_rows: int) -> None:
    trainer, real = training._trainer, training._trainer.token_losses
    seen = {"update": 0, "micro_batch": 0}

    def losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        result = real(model, batch)
        here = trainer.state.global_step + 1
        seen.update(update=here, micro_batch=seen["micro_batch"] + 1 if seen["update"] == here else 1)
        if [here, seen["micro_batch"]] == [update, micro_batch] and len(batch["labels"]) > most_rows:
            result.register_hook(raise_no_memory)
        return result

    trainer.token_losses = losses  # type: ignore[assignment]


def raise_no_memory(_: Any) -> None:
    raise NO_MEMORY


def seal(training: Training, step: int) -> list[str]:
    folder = training.saver.workspace.checkpoint(step)
    names = ("model.safetensors", "optimizer.pt", checkpoints.CONSUMED)
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]


def test_what_is_saved_is_the_beginning_of_the_update_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """With as many rows as before, so that nothing but the interruption could make a difference."""
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    workspaces = [make_place(tmp_path / name) for name in ("whole", "w")]
    for workspace in workspaces:
        change_model(workspace, attention_dropout=0.1)
    whole = make_attempt(workspaces[0], **settings)
    run(whole)
    first = make_attempt(workspace, **settings)
    fail_in_backward(first, 4, 3, 0)
    ended = run(first)
    assert (ended.code, ended.job_step) == (WorkerExit.OUT_OF_MEMORY, 3)
    assert "1 rows at a time, in update 4: CUDA out of memory." in ended.message
    assert ended.checkpoint == workspace.checkpoint(3)
    second = make_attempt(workspace, Going(resume="current_model/checkpoint-3"), **settings)
    assert run(second).code == WorkerExit.DONE
    assert seal(second, 6) == seal(whole, 6)


def test_in_the_first_update_there_is_nothing_to_save(tmp_path: Path) -> None:
    workspace = make_place(tmp_path / "w")
    training = make_attempt(workspace)
    fail_in_backward(training, 1, 1, 0)
    ended = run(training)
    assert (ended.code, ended.checkpoint) == (WorkerExit.OUT_OF_MEMORY, None)
    assert checkpoints.every(workspace) == []


def test_it_is_not_taken_for_an_update_when_the_optimizer_runs_out_of_memory(tmp_path: Path) -> None:
    """Some weights may have moved by then: what counts is the checkpoint before."""
    workspace = make_place(tmp_path / "w")
    training = make_attempt(workspace, save_steps=2, save_min_seconds=0)

    def step(*_: Any, **__: Any) -> None:
        if training._trainer.state.global_step == 3:
            raise NO_MEMORY

    training._trainer.create_optimizer().register_step_pre_hook(step)
    with pytest.raises(torch.OutOfMemoryError):
        run(training)
    assert [folder.name for folder in checkpoints.every(workspace)] == ["checkpoint-2"]


@pytest.mark.parametrize("most_rows", [2, 1, 0])
def test_an_evaluation_goes_on_with_fewer_rows_or_says_that_it_could_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_rows: int
) -> None:
    training = make_attempt(make_place(tmp_path / "w"), Going(holdout=True), eval_examples=0)
    expected = run(make_attempt(make_place(tmp_path / "calm"), Going(holdout=True), eval_examples=0))
    assert expected.code == WorkerExit.DONE
    fail_where_many(training, most_rows)
    assert run(training).code == WorkerExit.DONE
    after = [Evaluation.load(tmp_path / name / "runs/job/attempts/1/evaluation.json") for name in ("w", "calm")]
    assert after[0] and after[1]
    assert after[0].after is None if most_rows == 0 else after[0].after == pytest.approx(after[1].after, rel=1e-6)


def fail_where_many(training: Training, most_rows: int) -> None:
    assert training._holdout
    real: Callable[..., torch.Tensor] = training._holdout._token_losses

    def losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if not model.training and len(batch["labels"]) > most_rows:
            raise NO_MEMORY
        return real(model, batch)

    training._holdout._token_losses = losses  # type: ignore[assignment]


def test_main_memory_that_is_refused_for_real_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    assert is_exhausted(raised.value)
    assert is_exhausted(MemoryError()) and is_exhausted(NO_MEMORY) and is_exhausted(memory.OutOfMemory("x"))
    assert not is_exhausted(RuntimeError("shapes differ"))
