"""What each wish is answered in each state of the daemon: asked of a real daemon with a simulated worker.

`python -m tests.helpers_control_table` prints the tables of docs/reference/control.md.
"""

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from daemon.service import main
from tests.helpers_control import UPDATES, Stage
from tests.helpers_disk import without_waiting

WISHES: dict[str, tuple[str, dict[str, object]]] = {
    "training_controller pause": ("pause", {}),
    "training_controller resume": ("resume", {}),
    "training_controller stop": ("stop", {"now": False}),
    "training_controller stop --now": ("stop", {"now": True}),
    "training_controller skip --drop": ("skip", {"keep": False}),
    "training_controller skip --keep": ("skip", {"keep": True}),
    "training_controller approve": ("approve", {}),
    "training_controller reject": ("reject", {}),
    "training_queue retry": ("retry", {}),
    "training_queue set-priority … high": ("set_priority", {"priority": "high"}),
    "training_queue remove": ("remove", {}),
}


def training(stage: Stage) -> str:
    """A file of which two updates are made."""
    job = starting(stage)
    for _ in range(2):
        stage.advance()
    return job


def starting(stage: Stage) -> str:
    job = stage.drop()
    stage.until_it_trains()
    return job


def evaluating(stage: Stage) -> str:
    job = training(stage)
    assert stage.worker
    stage.worker.lingers = True
    for _ in range(UPDATES - 2):
        stage.advance()
    assert stage.worker and stage.worker.step == UPDATES
    return job


def waiting_for_approval(stage: Stage) -> str:
    """With gate mode human, a file that is trained to its end."""
    stage.gate("human")
    job = training(stage)
    while stage.worker:
        stage.advance()
    stage.look()
    assert stage.question(job)
    return job


def paused(stage: Stage) -> str:
    job = training(stage)
    assert stage.settle(stage.wish("pause")).done
    return job


def stopping(stage: Stage) -> str:
    job = training(stage)
    stage.wish("stop", now=False)
    stage.look()
    return job


def killed(stage: Stage) -> str:
    """The daemon was killed, and then its worker."""
    job = training(stage)
    assert stage.worker
    stage.worker.save()
    stage.kill_worker(noted=False)
    stage.kill()
    return job


def completed(stage: Stage) -> str:
    job = training(stage)
    for _ in range(UPDATES):
        stage.advance()
        stage.look()
    return job


def waiting(stage: Stage) -> str:
    training(stage)
    return stage.drop()


def dropped(stage: Stage) -> str:
    job = training(stage)
    assert stage.settle(stage.wish("skip", job)).done
    return job


def kept(stage: Stage) -> str:
    job = training(stage)
    assert stage.settle(stage.wish("skip", job, keep=True)).done
    return job


def rejected(stage: Stage) -> str:
    job = training(stage)
    stage.runner.loss = stage.worker.loss = 9.0  # type: ignore[union-attr]
    assert not stage.settle(stage.wish("skip", job, keep=True)).done
    return job


STATES: dict[str, Callable[[Stage], str]] = {
    "starting": starting,
    "training": training,
    "saving, evaluating": evaluating,
    "waiting for approval": waiting_for_approval,
    "paused": paused,
    "stopping after the file": stopping,
    "no daemon runs, the file is half trained": killed,
    "the file waits behind another": waiting,
    "nothing is trained; the file is completed": completed,
    "nothing is trained; the file was dropped": dropped,
    "nothing is trained; the file was kept": kept,
    "nothing is trained; the file was rejected": rejected,
}


def answer(root: Path, state: str, words: str) -> tuple[int, str]:
    """Exit code and message, with what differs from day to day left out."""
    with without_waiting():
        stage = Stage(root)
        before = stage.drop()
        while stage.state(before) != "completed":
            stage.look()
            stage.advance()
        job = STATES[state](stage)
        verb, options = WISHES[words]
        wish = stage.wish(verb, job if verb not in ("pause", "resume", "stop") else None, **options)
        if stage.daemon is None:
            with mock.patch.object(main, "settling_seconds", lambda: 1.0):
                stage.obey_once()
            said = stage.answer(wish)
            assert said, "answered at once, or not at all"
        else:
            said = stage.settle(wish)
        stage.kill_worker()
    message = re.sub(r"\d{8}T[\d.]+", "…", said.message) + (f"; remedy: {said.remedy}" if said.remedy else "")
    return said.exit, re.sub(r"…-\d{4}-x", "ID", message).replace("2.jsonl", "FILE").replace("3.jsonl", "FILE")


def tables() -> str:
    """The page's tables, a wish each."""
    root = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    text = ""
    for words in WISHES:
        text += f"\n### `{words}`\n\n| state | exit code | answer |\n| --- | --- | --- |\n"
        for state in STATES:
            code, message = answer(root / "w", state, words)
            text += f"| {state} | {code} | {message} |\n"
            shutil.rmtree(root / "w")
    shutil.rmtree(root)
    return text


if __name__ == "__main__":
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    print(tables())
