"""A workspace on disk, the real commands as processes, and the daemon's side of the files between them."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemon.core import files, locks
from daemon.core.paths import Workspace
from daemon.core.records import Answer, IntakeReport, Job, State, Wish, now
from daemon.jobs import store

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.at(tmp_path / "w")
    for folder in made.folders():
        files.make_folder(folder)
    files.write_json(made.config, {"model_name": "tiny", "base_model": "models/base/tiny"})
    return made


@pytest.fixture
def call(workspace: Workspace) -> Callable[..., Said]:
    """Run `training_controller` or `training_queue` on the workspace, as a person would."""

    def run(command: str, *arguments: object, **environment: str) -> Said:
        words = [sys.executable, "-P", "-m", f"daemon.cli.{command}", *map(str, arguments)]
        given = {**os.environ, "PYTHONPATH": str(ROOT), "TRAINING_BASE_DIR": str(workspace.root), **environment}
        done = subprocess.run(words, env=given, capture_output=True, text=True, timeout=60, check=False)
        return Said(done.returncode, done.stdout, done.stderr)

    return run


def put_job(workspace: Workspace, name: str, state: State, reason: str | None = None) -> store.Found:
    """A job as intake leaves it."""
    job = Job(
        id=store.new_id(workspace, name),
        file=name,
        data=name,
        bytes=1,
        taken_in_at=now(),
        reason=reason,
        remedy="read it",
    )
    folder = workspace.state(state) / job.id
    files.make_folder(folder)
    report = IntakeReport(
        **{"usable": True, "file": name, "sha256": "0", "bytes": 1, "format": "messages", "rows": 98, "bad_rows": 2},
        **{"too_long_rows": 0, "holdout_rows": 0, "duplicate_rows": 0, "tokens": 9, "trained_tokens": 5},
        **{"longest_row": 3, "estimated_steps": 7, "cache_key": "k", "reason": None, "remedy": None},
        **{"checked_at": now(), "seconds": 0.1},
    )
    report.save(folder / store.REPORT)
    job.save(folder / store.RECORD)
    return store.Found(state, folder, job)


@pytest.fixture
def answering(workspace: Workspace) -> Callable[..., AbstractContextManager[list[Wish]]]:
    """Hold the daemon's lock, and answer every wish the same: the daemon's side of the contract, nothing else."""

    @contextmanager
    def answer(done: bool = True, **said: Any) -> Iterator[list[Wish]]:
        lock, heard, over = locks.Lock(workspace.daemon_lock), [], threading.Event()
        reply = {"message": "done", **said}

        def serve() -> None:
            while not over.wait(0.01):
                for path in workspace.wishes.glob("2*.json"):
                    if not path.stem.endswith(".answer") and path.stem not in {wish.id for wish in heard}:
                        heard.append(Wish.model_validate_json(path.read_text()))
                        Answer(id=path.stem, done=done, at=now(), **reply).save(path.with_suffix(".answer.json"))

        thread = threading.Thread(target=serve)
        thread.start()
        yield heard
        over.set()
        thread.join()
        lock.release()

    return answer


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, "it did not come true within 30 s"
            time.sleep(0.02)

    return wait


@pytest.fixture
def job_at(workspace: Workspace) -> Callable[..., store.Found]:
    return lambda name, state, reason=None: put_job(workspace, name, state, reason)
