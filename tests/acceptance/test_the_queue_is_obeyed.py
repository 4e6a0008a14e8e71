"""Priorities, skip, stop and the verbs of the queue, against a daemon that trains."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.core import files, heartbeat
from tests.acceptance.bench import Bench, as_bytes, lines, rows
from tests.acceptance.interruptions import Worker, ended

LONG = 600  # epochs of eight rows, one update each: some twenty seconds, if nobody ends it
STEPS_OF_A_SECOND = 40


@pytest.fixture(scope="module")
def shared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A daemon with an accepted model."""
    bench = Bench.make(tmp_path_factory.mktemp("queue") / "w", model).start()
    bench.drop("before.jsonl", rows(8, start=9000))
    bench.wait_for("completed")
    yield bench
    bench.end()


@pytest.fixture
def bench(shared: Bench) -> Bench:
    """The same with nothing to do, whatever the test before has left."""
    if shared.daemon and shared.daemon.poll() is not None:
        shared.start()
    for name in ("high", "normal", "low"):
        for job in shared.jobs(name):
            succeed(shared, "training_queue", "remove", job)
    if shared.jobs("processing"):
        succeed(shared, "training_controller", "skip")
    succeed(shared, "training_controller", "resume")
    shared.configure(save_steps=10, learning_rate=1e-3)
    assert not any(shared.jobs(state) for state in ("high", "normal", "low", "processing"))
    return shared


def succeed(bench: Bench, *command: str) -> str:
    done = bench.command(*command)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def drop_long(bench: Bench, name: str, start: int, epochs: int = LONG) -> str:
    """Drop eight rows to be trained for many epochs; the job's id once it is past its first checkpoint."""
    (bench.root / "inbox" / f"{name}.yaml").write_text(f"epochs: {epochs}\n")
    bench.drop(f"{name}.jsonl", rows(8, start=start))
    return bench.wait_for_step(12)


def wait_until_read(bench: Bench, state: str, count: int) -> list[str]:
    """Wait until so many jobs wait there, read and found good."""
    folder = bench.root / "queue" / state
    bench.wait(lambda: len(list(folder.glob("*/report.json"))) == count, 30, f"{count} files read in {state}")
    return bench.jobs(state)


def outcomes(bench: Bench) -> list[tuple[str, str]]:
    return [(line["file"], line["outcome"]) for line in lines(bench.root / "runs/ledger.jsonl")]


def seal(bench: Bench) -> dict[str, str]:
    """Where `latest` leads, and the bytes of all that lies there."""
    folder = bench.latest()
    return {"": folder.name} | {f.name: files.hash_file(f) for f in sorted(folder.iterdir())}


# ---- the order ----


def test_a_high_priority_file_goes_before_two_that_wait(bench: Bench, tmp_path: Path) -> None:
    ended = len(outcomes(bench))
    drop_long(bench, "running", 0)
    bench.drop("one.jsonl", rows(8, start=10))
    bench.drop("two.jsonl", rows(8, start=20))
    wait_until_read(bench, "normal", 2)
    (tmp_path / "urgent.jsonl").write_bytes(as_bytes(rows(8, start=30)))
    said = succeed(bench, "training_queue", "add", str(tmp_path / "urgent.jsonl"), "--priority", "high")
    assert "queued as #1" in said and len(bench.jobs("normal")) == 2 and len(bench.jobs("processing")) == 1
    succeed(bench, "training_controller", "skip")
    bench.wait_for("completed", 4)
    trained = [(f"{name}.jsonl", "completed") for name in ("urgent", "one", "two")]
    assert outcomes(bench)[ended:] == [("running.jsonl", "skipped"), *trained]


def test_the_verbs_of_the_queue(bench: Bench) -> None:
    succeed(bench, "training_controller", "pause")
    for name, start in (("a", 100), ("b", 110), ("c", 120)):
        bench.drop(f"{name}.jsonl", rows(8, start=start))
    _, b, c = wait_until_read(bench, "normal", 3)
    assert "it is #1" in succeed(bench, "training_queue", "set-priority", "c.jsonl", "high")
    listed = json.loads(succeed(bench, "training_queue", "list", "--json"))
    assert [(job["file"], job["priority"], job["waits_for"]) for job in listed] == [
        ("c.jsonl", "high", "paused (user)"),
        ("a.jsonl", "normal", "paused (user)"),
        ("b.jsonl", "normal", "paused (user)"),
    ]
    said = succeed(bench, "training_queue", "remove", b)
    (grave,) = (bench.root / "models/trash").glob(f"*{b}*")
    assert str(grave.relative_to(bench.root)) in said
    assert (grave / b / "b.jsonl").read_bytes() == as_bytes(rows(8, start=110))
    assert "8 good, 0 refused" in succeed(bench, "training_queue", "show", c)
    succeed(bench, "training_controller", "resume")
    assert "is completed" in succeed(bench, "training_queue", "wait", "a.jsonl")
    assert [file for file, _ in outcomes(bench)][-2:] == ["c.jsonl", "a.jsonl"]
    logged = succeed(bench, "training_queue", "log", "c.jsonl", "--json").splitlines()
    assert [json.loads(line) for line in logged] == bench.log(c)
    assert "passed" in succeed(bench, "training_queue", "show", "c.jsonl")


def test_wait_tells_of_a_failure_and_retry_reads_the_file_anew(bench: Bench) -> None:
    bench.drop("spoiled.jsonl", "no row\n")
    waited = bench.command("training_queue", "wait", "spoiled.jsonl")
    assert waited.returncode == 1 and "remedy" in waited.stdout
    (job,) = bench.jobs("failed")
    (bench.root / "queue/failed" / job / "spoiled.jsonl").write_bytes(as_bytes(rows(8, start=200)))
    succeed(bench, "training_queue", "retry", "spoiled.jsonl")
    succeed(bench, "training_queue", "wait", "spoiled.jsonl")
    assert job in bench.jobs("completed")


def test_follow_shows_the_log_to_the_jobs_end(bench: Bench) -> None:
    job = drop_long(bench, "followed", 300, epochs=60)
    shown = succeed(bench, "training_queue", "log", job, "--follow", "--json").splitlines()
    assert [json.loads(line) for line in shown] == bench.log(job)
    assert bench.log(job, "log")[-1]["job_step"] == 60


# ---- skip ----


def test_skip_leaves_the_model_as_it_was_and_a_retry_begins_at_the_first_row(bench: Bench) -> None:
    before, step = seal(bench), bench.manifest()["step"]
    job = drop_long(bench, "skipped", 400, epochs=100)
    assert len(list((bench.root / "current_model").glob("checkpoint-*"))) > 1, "it has saved something"
    said = succeed(bench, "training_controller", "skip")
    assert "skipped.jsonl is skipped" in said and job in bench.jobs("skipped")
    assert seal(bench) == before
    assert not [f for f in (bench.root / "current_model").glob("checkpoint-*") if bench.manifest(f)["job"] == job]
    succeed(bench, "training_queue", "retry", job)
    succeed(bench, "training_queue", "wait", job)
    assert started(bench, job) == [0, 0]
    assert bench.manifest()["step"] == step + 100


def test_a_retry_takes_todays_settings(bench: Bench) -> None:
    """What made it fail may have been one of them."""
    job = drop_long(bench, "mended", 450)
    succeed(bench, "training_controller", "skip")
    bench.configure(learning_rate=5e-4)
    (bench.root / "queue/skipped" / job / "mended.jsonl").write_bytes(as_bytes(rows(8, start=460)))
    succeed(bench, "training_queue", "retry", job)
    bench.wait(lambda: len(started(bench, job)) == 2 and bench.log(job, "log")[-1]["attempt"] == 2, 30, "it is trained")
    assert {line["attempt"]: line["learning_rate"] for line in bench.log(job, "log")} == {1: 1e-3, 2: 5e-4}


def test_a_retry_has_three_attempts_like_a_new_file(bench: Bench) -> None:
    bench.configure(save_steps=LONG)
    job = drop_long(bench, "unlucky", 470)
    for _ in range(3):
        kill_worker(bench, job)
    assert bench.wait_for("failed") and job in bench.jobs("failed")
    succeed(bench, "training_queue", "retry", job)
    for killed in (4, 5):
        kill_worker(bench, job)
        bench.wait(lambda killed=killed: len(started(bench, job)) == killed + 1, 30, "another attempt")
    kill_worker(bench, job)
    bench.wait(lambda: job in bench.jobs("failed"), 30, "it is given up again")


def kill_worker(bench: Bench, job: str) -> None:
    """Once it has made an update."""
    worker = bench.wait(
        lambda: (w := Worker.see(bench)) and w.step and w.pid == bench.worker_pid() and w, 30, "a worker"
    )
    assert worker.job == job
    os.kill(worker.pid, signal.SIGKILL)
    bench.wait(lambda: ended(bench, worker), 30, "the daemon says that it has ended")


def test_skip_is_refused_where_nothing_is_trained(bench: Bench) -> None:
    refused = bench.command("training_controller", "skip")
    assert refused.returncode == 5 and "training_queue remove" in refused.stderr


# ---- stop ----


def test_stop_ends_after_the_file_and_a_new_daemon_goes_on_with_what_waits(bench: Bench) -> None:
    done = len(bench.jobs("completed"))
    job = drop_long(bench, "current", 500, epochs=100)
    bench.drop("next.jsonl", rows(8, start=510))
    (waiting,) = wait_until_read(bench, "normal", 1)
    succeed(bench, "training_controller", "stop")
    assert bench.daemon and bench.daemon.wait(20) == 0
    assert job in bench.jobs("completed") and bench.jobs("normal") == [waiting]
    assert bench.status()["status"] == "stopped" and bench.worker_pid() is None
    assert started(bench, job) == [0] and bench.log(job, "log")[-1]["job_step"] == 100
    bench.start()
    bench.wait_for("completed", done + 2)
    assert waiting in bench.jobs("completed")


@pytest.mark.parametrize("how", [".stop", "stop --now"])
def test_stop_now_ends_at_the_next_step_with_a_checkpoint(how: str, bench: Bench) -> None:
    bench.configure(save_steps=LONG)  # no save is due: what is saved is saved for the stop
    job = drop_long(bench, f"interrupted{len(how)}", 600 + 10 * len(how))
    asked = step_of(bench, job)
    stop_now(bench, how)
    assert bench.jobs("processing") == [job] and bench.worker_pid() is None
    (saved,) = [manifest for manifest in sound_manifests(bench) if manifest["job"] == job]
    assert saved["job_step"] == step_of(bench, job) <= asked + STEPS_OF_A_SECOND
    bench.start()
    going_on = bench.wait(lambda: [x for x in started(bench, job) if x > 0], 30, "the job goes on")
    assert going_on == [saved["job_step"]]


def step_of(bench: Bench, job: str) -> int:
    beat = heartbeat.read(bench.root / "runs" / job / "attempts/1/heartbeat")
    assert beat
    return beat.job_step


def started(bench: Bench, job: str) -> list[int]:
    """The step at which each attempt of a job began."""
    return [line["job_step"] for line in bench.log(job, "event") if line["event"] == "started"]


def stop_now(bench: Bench, how: str) -> None:
    """Ask the daemon to end at once, and see it end."""
    if how == ".stop":
        (bench.root / ".stop").touch()
    else:
        assert "is verified" in succeed(bench, "training_controller", *how.split())
    assert bench.daemon and bench.daemon.wait(10) == 0
    assert not (bench.root / ".stop").exists()


def sound_manifests(bench: Bench) -> list[dict[str, Any]]:
    """Those of all checkpoints whose files are as their manifest says."""
    manifests = {folder: bench.manifest(folder) for folder in (bench.root / "current_model").glob("checkpoint-*")}
    return [
        manifest
        for folder, manifest in manifests.items()
        if all(files.hash_file(folder / name) == kept["sha256"] for name, kept in manifest["files"].items())
    ]


@pytest.mark.parametrize("age_seconds", [0, 6])
def test_an_idle_daemon_obeys_the_stop_file_at_once(age_seconds: float, make_bench: Callable[..., Bench]) -> None:
    """Whether it has just begun or not; its timer would come in a minute only."""
    bench = make_bench(poll_interval=60).start()
    began = time.monotonic()
    bench.wait(lambda: bench.status()["status"] == "idle", 10, "it is idle")
    bench.wait(lambda: time.monotonic() - began >= age_seconds, 10, "it is so old")
    (bench.root / ".stop").touch()
    assert bench.daemon and bench.daemon.wait(10) == 0
    assert not (bench.root / ".stop").exists()
