"""A checkpoint that is written while training goes on is the one that a waiting training would have written."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from daemon.core import files
from daemon.models import checkpoints
from daemon.worker import saving, snapshot
from daemon.worker.train import Training
from tests.helpers_disk import disk_with
from tests.helpers_training import At, make_training

NO_OTHER_SAVES = {"save_steps": 4, "save_min_seconds": 10**6}
AT = 3  # the step of the save in question


@contextmanager
def held(step: int, until: list[bool]) -> Iterator[None]:
    """The disk lets the checkpoint of a step begin only then."""

    def hold(name: str, call: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
        while name == "mkdir" and f"checkpoint-{step}" in str(arguments[0]) and not until:
            time.sleep(0.01)
        return call()

    with disk_with(hold):
        yield


def train(training: Training, *, wait: bool) -> list[saving.Saved]:
    """With a save in the middle; that one and the last."""
    ended: list[saving.Saved] = []
    save = training.saver.save
    training._trainer.add_callback(At(AT, lambda: ended.extend(save(training._trainer, [], final=False, wait=wait))))
    try:
        training.run()
        training.finish()
    finally:
        training.saver.close()
    return ended


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # from peft
@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_holds_the_step_at_which_it_began(method: str, tmp_path: Path) -> None:
    seals = []
    for wait in (True, False):
        training = make_training(tmp_path / f"{wait}", training_method=method)
        later = [True] if wait else []
        training._trainer.add_callback(At(AT + 2, partial(later.append, True)))
        with held(AT, until=later):
            train(training, wait=wait)
        folder = training.saver.workspace.checkpoint(AT)
        manifest = checkpoints.read(folder)
        assert manifest and checkpoints.damage(folder) is None
        state = [name for name in manifest.files if name.endswith((".safetensors", ".pt", ".pth"))]
        seals.append({name: manifest.files[name].sha256 for name in state})
        last = checkpoints.read(training.saver.workspace.checkpoint(6))
        weights = next(name for name in manifest.files if name.endswith(".safetensors"))
        assert last and last.files[weights] != manifest.files[weights]
    assert seals[0] == seals[1]
    assert len(seals[0]) == 3 and {saving.OPTIMIZER, saving.RNG} < seals[0].keys()


def test_without_memory_for_a_copy_training_waits_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = make_training(tmp_path / "w")
    monkeypatch.setattr(snapshot, "free_memory", lambda: 1_000_000)
    (saved,) = train(training, wait=False)
    assert not saved.aside and saved.stall_seconds == saved.seconds
    events = [line for line in files.read_lines(tmp_path / "w/runs/job/log.jsonl") if line.get("event") == "saved"]
    assert ["1 MB are free" in line["waits_because"] for line in events] == [True]


def test_a_save_that_fails_aside_is_told_and_costs_nothing_that_was_there(tmp_path: Path) -> None:
    training = make_training(tmp_path / "w", save_total_limit=1)
    workspace = training.saver.workspace
    began: list[bool] = []

    def fill_the_disk(name: str, call: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
        if name == "mkdir" and f"checkpoint-{AT}" in str(arguments[0]):
            began.append(True)
            raise OSError(28, "No space left on device")
        return call()

    save = training.saver.save
    training._trainer.add_callback(At(1, lambda: save(training._trainer, [], final=False, wait=True)))
    with disk_with(fill_the_disk), pytest.raises(OSError, match="No space left"):
        train(training, wait=False)
    assert began and not workspace.checkpoint(AT).exists()
    assert checkpoints.damage(workspace.checkpoint(1)) is None


def test_none_is_due_while_one_is_written(tmp_path: Path) -> None:
    training = make_training(tmp_path / "w", save_steps=1, save_min_seconds=0)
    due: list[bool] = []
    go_on: list[bool] = []
    saver = training.saver
    training._trainer.add_callback(At(1, lambda: saver.prepare(training._trainer)))
    training._trainer.add_callback(At(AT + 1, lambda: due.append(saver.due(AT + 1))))
    training._trainer.add_callback(At(AT + 1, lambda: go_on.append(True)))
    training._step.on_step_end = lambda *_, **__: None  # type: ignore[method-assign]
    with held(AT, until=go_on):
        save = saver.save
        training._trainer.add_callback(At(AT, lambda: save(training._trainer, [], final=False, wait=False)))
        training.run()
        saver.close()
    assert due == [False]
    assert [saved.step for saved in saver.settle()] == [AT]
    assert saver.due(AT + 1)
