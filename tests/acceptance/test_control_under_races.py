"""Wishes at the very moment of finish, and a pause that outlasts daemon, boot and days; with the real worker."""

import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.bench import Bench, lines, rows

pytestmark = pytest.mark.timeout(1200)
LONG = {"num_train_epochs": 300}  # of eight rows, an update each
DAYS = 3 * 86400


def test_a_pause_outlasts_the_daemon_the_boot_and_days_and_ends_at_the_exact_row(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(**LONG)
    bench.start()
    bench.drop("x.jsonl", rows(8))
    job = bench.wait_for_step(12)
    said = json.loads(bench.command("training_controller", "pause", "--json").stdout)
    step = said["facts"]["job_step"]
    bench.end()
    lock = bench.root / "status/worker.lock"
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "boot_id": "another", "pid": 1}))
    for path in bench.root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (time.time() - DAYS,) * 2)
    bench.start()
    bench.drop("y.jsonl", rows(8, start=100))
    bench.wait(lambda: list(bench.root.glob("queue/normal/*/report.json")), 120, "files are still taken in")
    assert bench.status()["status"] == "paused" and bench.worker_pid() is None
    assert bench.jobs("processing") == [job]
    assert bench.command("training_controller", "resume").returncode == 0
    bench.wait_for_step(step + 1)
    began = [line["job_step"] for line in bench.log(job, "event") if line["event"] == "started"]
    assert began == [0, step]
    assert bench.command("training_controller", "skip").returncode == 0


WISHES: list[tuple[str, ...]] = [("pause",), ("skip",), ("skip", "--keep"), ("skip", "--keep"), ("pause",), ("skip",)]


def test_a_wish_at_the_moment_of_finish_is_answered_with_what_is_and_hits_no_other_file(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(num_train_epochs=8)
    bench.start()
    for number, words in enumerate(WISHES):
        bench.drop(f"{number}.jsonl", rows(8, start=100 * number))
        job = bench.wait_for_step(7 + number % 2)
        done = bench.command("training_controller", *words)
        (state,) = [s for s in ("processing", "completed", "skipped", "rejected") if job in bench.jobs(s)]
        assert done.returncode in ANSWERS[words[0]][state], (words, state, done.stdout, done.stderr)
        bench.command("training_controller", "resume")
        bench.wait(lambda job=job: job not in bench.jobs("processing"), 120, "the file has ended")
        is_told_truly(bench, job)
    outcomes = [line["job"] for line in lines(bench.root / "runs/ledger.jsonl")]
    assert len(outcomes) == len(set(outcomes)) == len(WISHES)


# Exit codes that are true for a file that lies there now: done, refused since it was completed, or not to be skipped.
ANSWERS: dict[str, dict[str, tuple[int, ...]]] = {
    "pause": {"processing": (0,), "completed": (0,)},
    "skip": {"completed": (5,), "skipped": (0,)},
}


def is_told_truly(bench: Bench, job: str) -> None:
    """The audit, from what the worker noted, says of the model what the job's state says."""
    manifest: dict[str, Any] = bench.manifest() if (bench.root / "current_model/latest").exists() else {"lineage": []}
    inside = sum(entry["steps"] for entry in manifest["lineage"] if entry["job"] == job)
    if job in bench.jobs("completed"):
        assert inside == 8
    else:
        reason = json.loads((bench.root / f"queue/skipped/{job}/job.json").read_text())["reason"]
        assert (f"{inside} of its 8 updates" in reason) == (inside > 0)
