"""A second daemon on the same workspace ends with code 75 and touches nothing."""

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.acceptance.bench import Bench, rows
from tests.helpers_crowd import crowd, start_at_once

READY_SECONDS = 30  # a busy machine; benchmarks/one_owner.py asks for 3, with ten thousand files


def listing(bench: Bench) -> dict[str, tuple[object, ...]]:
    """Everything in the workspace: its kind, inode, time of change and content."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([bench.root, *bench.root.rglob("*")]):
        info = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        found[str(path.relative_to(bench.root))] = (info.st_mode, info.st_ino, info.st_mtime_ns, content)
    return found


def stands_still(pid: int) -> bool:
    states = [task.read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """These processes hold what they hold, and write nothing meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    while not all(map(stands_still, pids)):  # a thread in a call to the disk ends that first
        time.sleep(0.01)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def training(make_bench: Callable[..., Bench]) -> Bench:
    """A daemon in the middle of a file, another one waiting, and a folder that nobody needs now taken away."""
    bench = make_bench(num_train_epochs=40).start()
    bench.drop("now.jsonl", rows(40))
    bench.wait_for_step(12)
    bench.drop("then.jsonl", rows(8, start=100))
    bench.wait(lambda: list(bench.root.glob("queue/normal/*/report.json")), 30, "the second file is read")
    (bench.root / "data/benchmarks").rmdir()
    return bench


def test_a_second_daemon_ends_with_75_and_touches_nothing(training: Bench) -> None:
    worker = training.worker_pid()
    assert worker
    with frozen(training.daemon_pid, worker):
        before = listing(training)
        for arguments in ((), ("run",), ("run", "--once")):
            second = training.command("training_daemon", *arguments, timeout=30)
            assert second.returncode == 75 and f"process {training.daemon_pid}" in second.stderr
            assert "training_controller stop --now" in second.stderr
            assert listing(training) == before
    assert training.worker_pid() == worker
    assert len(training.wait_for("completed", 2)) == 2, "the first goes on as if nothing had been"


def test_of_twenty_daemons_started_at_once_one_owns_it_and_the_worker_goes_on(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(num_train_epochs=10**6).start()
    bench.drop("long.jsonl", rows(8))
    bench.wait_for_step(1)
    bench.kill_daemon()
    worker = bench.worker_pid()
    started = start_at_once(bench, 20)
    try:
        assert started.codes == [75] * 19
        (owner,) = started.owners
        assert worker is not None and bench.worker_pid() == worker
        assert [event["pid"] for event in bench.events("daemon_started")] == [bench.daemon_pid, owner.pid]
    finally:
        for daemon in started.owners:
            daemon.terminate()
            daemon.wait(60)
    assert bench.worker_pid() is None, "it has saved and ended with the one that owns it"


def test_with_two_thousand_files_waiting_a_daemon_is_soon_ready(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(num_train_epochs=10**6)
    crowd(bench, 2000)
    before = len(bench.events("checked"))
    began = time.monotonic()
    bench.start()
    bench.command("training_controller", "resume").check_returncode()
    assert time.monotonic() - began < READY_SECONDS
    bench.wait_for_step(1)
    assert len(bench.events("checked")) == before, "what an earlier daemon has read and said is not said again"
