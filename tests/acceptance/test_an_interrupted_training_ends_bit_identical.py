"""Paused, killed, adopted: weights and optimizer end bit-identical to those of a training that was never disturbed."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.bench import Bench, rows

# 151 updates over two epochs; the second begins within update 76, the last update is smaller than the others. Enough
# of them for a training that outlasts the daemon's start three times, on a busy machine too.
FIRST, SECOND = rows(30), rows(603, start=100)
SETTINGS = {"num_train_epochs": 2, "save_steps": 10, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
UPDATES = 151
MOMENTS = (25, 85, 125)  # first, middle and last third; the latter two in the second epoch
METHODS = ("full", "lora")


def settings_of(method: str) -> dict[str, object]:
    return {**SETTINGS, "training_method": method, "lora": {"dropout": 0.1}}


@pytest.fixture(scope="module")
def undisturbed(dropout_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """The seal of an undisturbed training, made once a method."""
    seals: dict[str, str] = {}

    def get(method: str) -> str:
        if method not in seals:
            bench = Bench.make(tmp_path_factory.mktemp(method) / "calm", dropout_model, **settings_of(method))
            try:
                seals[method] = train(bench, lambda bench, step: None)
            finally:
                bench.end()
        return seals[method]

    yield get


def train(bench: Bench, disturb: Callable[[Bench, int], None]) -> str:
    """Train two files one after the other, disturbing the second at each moment; the seal of what comes out."""
    bench.start()
    bench.drop("first.jsonl", FIRST)
    bench.wait_for("completed")
    bench.drop("second.jsonl", SECOND)
    for moment in MOMENTS:
        bench.wait_for_step(moment)
        disturb(bench, moment)
    bench.wait_for("completed", 2)
    assert bench.manifest()["step"] == 8 + UPDATES
    audit = json.loads(bench.command("training_queue", "audit", "second.jsonl", "--json").stdout)
    assert audit["rows_by_times"] == {str(SETTINGS["num_train_epochs"]): len(SECOND)}
    return seal(bench.latest())


def seal(folder: Path) -> str:
    """One hash over the weights and the optimizer's state, byte for byte."""
    weights = next(p for p in (folder / "model.safetensors", folder / "adapter_model.safetensors") if p.exists())
    return "+".join(hashlib.sha256(p.read_bytes()).hexdigest() for p in (weights, folder / "optimizer.pt"))


def beginnings(bench: Bench) -> list[int]:
    """The step at which each attempt of the second file began."""
    job = bench.jobs("completed")[1]
    return [e["job_step"] for e in bench.log(job, "event") if e["event"] == "started"]


@pytest.mark.parametrize("method", METHODS)
def test_dropout_is_active(method: str, undisturbed: Callable[[str], str], make_bench: Callable[..., Bench]) -> None:
    """Without this the other tests would prove less than they say."""
    dry = make_bench(**{**settings_of(method), "lora": {"dropout": 0.0}})
    assert train(dry, lambda bench, step: None) != undisturbed(method)


@pytest.mark.parametrize("method", METHODS)
def test_after_pause_and_resume(
    method: str, undisturbed: Callable[[str], str], make_bench: Callable[..., Bench], dropout_model: Path
) -> None:
    seconds = []

    def pause_and_resume(bench: Bench, step: int) -> None:
        started = time.monotonic()
        answer = bench.command("training_controller", "pause")
        seconds.append(time.monotonic() - started)
        assert answer.returncode == 0 and "verified" in answer.stdout, answer.stdout + answer.stderr
        assert bench.worker_pid() is None
        assert bench.command("training_controller", "resume").returncode == 0

    bench = make_bench(of=dropout_model, **settings_of(method))
    assert train(bench, pause_and_resume) == undisturbed(method)
    assert len(beginnings(bench)) == 4 and min(beginnings(bench)[1:]) > 0
    assert max(seconds) < 2, seconds


@pytest.mark.parametrize("method", METHODS)
def test_after_the_worker_was_killed(
    method: str, undisturbed: Callable[[str], str], make_bench: Callable[..., Bench], dropout_model: Path
) -> None:
    def kill_worker(bench: Bench, step: int) -> None:
        pid = bench.worker_pid()
        assert pid
        os.kill(pid, signal.SIGKILL)
        bench.wait(lambda: bench.worker_pid() not in (None, pid), 30, "another worker")

    bench = make_bench(of=dropout_model, **settings_of(method))
    assert train(bench, kill_worker) == undisturbed(method)
    assert len(beginnings(bench)) == 4
    assert sum(step > 0 for step in beginnings(bench)[1:]) == 3, "each went on after a checkpoint of this job"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["SIGKILL", "SIGHUP"])
def test_after_the_daemon_was_killed_or_executed_anew(
    how: str, method: str, undisturbed: Callable[[str], str], make_bench: Callable[..., Bench], dropout_model: Path
) -> None:
    """The worker's process stays, and no step is lost."""

    def disturb(bench: Bench, step: int) -> None:
        worker, daemon_started = bench.worker_pid(), bench.status()["daemon_started_at"]
        assert worker and bench.daemon
        if how == "SIGKILL":
            bench.kill_daemon()
            bench.start()
        else:
            bench.daemon.send_signal(signal.SIGHUP)
            bench.wait(lambda: bench.status()["daemon_started_at"] != daemon_started, 30, "a daemon executed anew")
        assert bench.worker_pid() == worker

    bench = make_bench(of=dropout_model, **settings_of(method), logging_steps=1)
    assert train(bench, disturb) == undisturbed(method)
    assert beginnings(bench) == [0]
    steps = [line["job_step"] for line in bench.log(bench.jobs("completed")[1], "log")]
    assert steps == list(range(1, UPDATES + 1))
