"""What `report_to` names is told of one run a job, and cannot hurt it."""

import hashlib
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from daemon.core import files
from daemon.worker import reporting
from tests.helpers_training import At, Going, make_attempt, make_place, run

TOLD = {"training_args": {"report_to": ["tensorboard"]}, "logging_steps": 1}


def told(folder: Path, tag: str) -> dict[int, float]:
    """The figures of this name by step, from every file of events; a record is length, checksum, event, checksum."""
    found = {}
    for path in sorted(folder.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4
            found.update((event.step, value.simple_value) for value in event.summary.value if value.tag == tag)
    return found


def seal(root: Path) -> str:
    return hashlib.sha256((root / "current_model/checkpoint-6/model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_the_figures_of_the_log_are_told_to_one_run_over_an_interruption(tmp_path: Path) -> None:
    workspace = make_place(tmp_path)
    first = make_attempt(workspace, Going(holdout=True), **TOLD)
    first._trainer.add_callback(At(4, lambda: first._step.save(final=False, wait=True)))
    first._trainer.add_callback(At(5, lambda: setattr(first._trainer.control, "should_training_stop", True)))
    first.run()
    first.saver.close()
    time.sleep(1.1)  # tensorboardX names its file by the second, and here both attempts are one process
    run(make_attempt(workspace, Going(resume="current_model/checkpoint-4", holdout=True), **TOLD))
    log = [line for line in files.read_lines(tmp_path / "runs/job/log.jsonl") if line["kind"] == "log"]
    losses = told(tmp_path / "runs/job/tensorboard", "train/loss")
    assert losses == pytest.approx({line["job_step"]: line["loss"] for line in log}) and len(losses) == 6
    assert set(told(tmp_path / "runs/job/tensorboard", "eval/loss")) == {0, 6}


class Failing(TrainerCallback):
    def on_log(self, *_: Any, **__: Any) -> None:
        torch.rand(3)
        raise ConnectionError("nobody there")


def test_one_that_fails_and_draws_at_random_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make_attempt(make_place(tmp_path / "alone")))
    monkeypatch.setattr(Failing, "__module__", integration_utils.__name__)
    training = make_attempt(make_place(tmp_path / "told"), **TOLD)
    training._trainer.add_callback(Failing())
    reporting.quieten(training._trainer, training._log)
    run(training)
    assert seal(tmp_path / "told") == seal(tmp_path / "alone")
    assert capsys.readouterr().out.count("Failing is told no more, since it failed: ConnectionError: nobody there") == 1
