"""Crowds: many daemons at once on one workspace, and thousands of jobs that wait in it."""

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.bench import COMMANDS, Bench, rows

ALL_BUT_ONE_SECONDS = 120.0


@dataclass(frozen=True)
class Started:
    """What became of daemons that were started at the same time."""

    owners: list[subprocess.Popen[bytes]]  # those that have not ended
    codes: list[int]  # exit codes of the others


def start_at_once(bench: Bench, count: int) -> Started:
    """Start so many daemons and wait until at most one has not ended and that one publishes."""
    command = [COMMANDS / "training_daemon", "--base-dir", str(bench.root), "run"]
    with (bench.root.parent / f"{bench.root.name}.log").open("ab") as log:
        given = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "env": bench.environment, "cwd": "/"}
        daemons = [subprocess.Popen(command, **given) for _ in range(count)]  # type: ignore[call-overload]
    until = time.monotonic() + ALL_BUT_ONE_SECONDS
    while time.monotonic() < until:
        alive = [daemon for daemon in daemons if daemon.poll() is None]
        if len(alive) <= 1 and all(bench.status().get("pid") == daemon.pid for daemon in alive):
            break
        time.sleep(0.02)
    alive = [daemon for daemon in daemons if daemon.poll() is None]
    return Started(alive, [daemon.returncode for daemon in daemons if daemon not in alive])


def crowd(bench: Bench, count: int) -> list[str]:
    """Let so many jobs wait, read and found good, in a workspace without a daemon; their ids, oldest first."""
    bench.start().command("training_controller", "pause").check_returncode()
    bench.drop("crowd.jsonl", rows(8))
    bench.wait(lambda: list(bench.root.glob("queue/normal/*/report.json")), 60, "the file is read")
    bench.end()
    folder = bench.root / "queue/normal"
    (job,) = bench.jobs("normal")
    made = [job, *(f"{job[:16]}{number:04d}{job[20:]}" for number in range(2, count + 1))]
    for other in made[1:]:
        _copy(folder / job, folder / other)
    return made


def _copy(job: Path, other: Path) -> None:
    """The same content under another id; by hard links, but for the record."""
    for folder, _, names in os.walk(job):
        target = other / os.path.relpath(folder, job)
        target.mkdir()
        for name in names:
            os.link(Path(folder) / name, target / name)
    record = json.loads((job / "job.json").read_text())
    (other / "job.json").unlink()
    (other / "job.json").write_text(json.dumps({**record, "id": other.name}))
