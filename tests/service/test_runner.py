"""A signal reaches the worker and nobody else, whatever the lock file says; real processes, each its own."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.core import locks
from daemon.core.attempts import ExitInfo
from daemon.core.heartbeat import Heartbeat
from daemon.core.paths import Workspace
from daemon.jobs.recovery import Ending
from daemon.service.runner import Runner
from tests.helpers_processes import process, said, tell, until

# Holds the worker's lock under the name of `pid`, in a group of its own, beside a child that it has started.
WORKER = """
import json, os, signal, subprocess, sys
from pathlib import Path
from daemon.core import locks
os.setsid()
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"asked\\n"))  # a print may be under way
child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
lock = locks.Lock(Path(sys.argv[1]))
lock.describe({**locks.this_process(), "attempt": "/nowhere/runs/j/attempts/1", **json.loads(sys.argv[2])})
print(child.pid, flush=True)
for line in sys.stdin:
    pass
"""


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as one:
        yield one
        one.kill()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "status").mkdir()
    (tmp_path / "logs").mkdir()
    return Workspace(tmp_path)


def lives(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def with_runner(workspace: Workspace, deed: Callable[[Runner], Any]) -> Any:
    async def act() -> Any:
        return deed(Runner(workspace, lambda: None))

    return asyncio.run(act())


def do_everything(runner: Runner) -> bool:
    runner.follow()
    runner.ask_for_stacks()
    runner.send(signal.SIGTERM, signal.SIGKILL)
    return runner.kill()


def test_a_known_worker_is_reached_and_killed_with_all_that_it_started(workspace: Workspace) -> None:
    with process(WORKER, workspace.worker_lock, "{}") as worker:
        child = int(said(worker))
        with_runner(workspace, lambda runner: runner.send(signal.SIGTERM))
        tell(worker)
        assert said(worker) == "asked"
        with_runner(workspace, lambda runner: runner.ask_for_stacks())  # it has no handler, so it is left in peace
        assert worker.poll() is None
        assert with_runner(workspace, lambda runner: runner.kill()) is True
        assert worker.wait(30) == -signal.SIGKILL
        until(lambda: not lives(child))


def test_a_stale_lock_file_that_names_a_stranger_means_nothing(
    workspace: Workspace, stranger: subprocess.Popen[bytes]
) -> None:
    who = {"pid": stranger.pid, "start_ticks": locks.start_ticks(stranger.pid), "boot_id": locks.boot_id()}
    lock = locks.Lock(workspace.worker_lock)
    lock.describe({**who, "attempt": "/nowhere"})
    lock.release()
    assert with_runner(workspace, do_everything) is True, "nobody holds it: nobody is left to kill"
    assert stranger.poll() is None


@pytest.mark.parametrize("lie", [{"start_ticks": 1}, {"boot_id": "before the reboot"}, {"start_ticks": None}])
def test_a_stranger_with_the_number_of_the_holder_is_never_signalled(
    lie: dict[str, Any], workspace: Workspace, stranger: subprocess.Popen[bytes]
) -> None:
    """The number was given again: after a reboot, or because the description is another's."""
    named = {"pid": stranger.pid, "start_ticks": locks.start_ticks(stranger.pid), "boot_id": locks.boot_id()}
    with process(WORKER, workspace.worker_lock, json.dumps(named | lie)) as worker:
        child = int(said(worker))
        assert with_runner(workspace, do_everything) is False
        assert (stranger.poll(), worker.poll(), lives(child)) == (None, None, True)
        os.kill(child, signal.SIGKILL)


def test_a_worker_that_ended_before_it_could_be_followed_is_no_error(workspace: Workspace) -> None:
    """The lock is held still, by one who says of himself that he is a process that is gone."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    lock = locks.Lock(workspace.worker_lock)
    lock.describe({"pid": gone.pid, "start_ticks": 1, "boot_id": locks.boot_id(), "attempt": "/nowhere"})
    try:
        assert with_runner(workspace, do_everything) is False
    finally:
        lock.release()


def test_of_an_adopted_worker_the_record_of_its_death_is_waited_for(workspace: Workspace) -> None:
    """Its fork server is of an earlier life of the daemon, and takes a moment to write."""
    attempt = workspace.run("j").attempt(1)
    attempt.root.mkdir(parents=True)
    Heartbeat(attempt.heartbeat)
    held = process(WORKER, workspace.worker_lock, json.dumps({"attempt": str(attempt.root)}))

    def see(runner: Runner) -> None:
        with held as worker:
            said(worker)
            assert runner.ending(attempt) is None
            runner.kill()
            worker.wait()
            until(lambda: not runner.alive())
            assert runner.ending(attempt) is None and runner.impatient
            ExitInfo(pid=worker.pid, code=None, signal=9, at="").save(attempt.exit)
            ended = runner.ending(attempt)
            assert ended and ended[0] is Ending.KILLED

    with_runner(workspace, see)


def test_of_a_worker_that_died_before_the_daemon_began_nothing_is_waited_for(workspace: Workspace) -> None:
    attempt = workspace.run("j").attempt(1)
    attempt.root.mkdir(parents=True)
    Heartbeat(attempt.heartbeat)
    ended = with_runner(workspace, lambda runner: runner.ending(attempt))
    assert ended[0] is Ending.VANISHED
