"""Locks live exactly as long as the process that holds them, whatever the file says."""

import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from daemon.core.locks import Lock, is_locked, is_process, lock_holder, this_process
from tests.helpers_processes import process, said, tell

HOLDER = """
import sys
from pathlib import Path
from daemon.core.locks import Lock
lock = Lock(Path(sys.argv[1]))
lock.describe({"pid": 7})
print("held", flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
"""
CONTENDER = """
import sys
from pathlib import Path
from daemon.core.locks import Lock
print("ready", flush=True)
sys.stdin.readline()
try:
    lock = Lock(Path(sys.argv[1]))
    print("owner", flush=True)
except BlockingIOError:
    print("refused", flush=True)
sys.stdin.readline()
"""
PARENT = """
import os, subprocess, sys, time
from pathlib import Path
from daemon.core.locks import Lock
lock = Lock(Path(sys.argv[1]))
if sys.argv[2] == "exec":
    child = subprocess.Popen(["sleep", "60"], close_fds=False).pid
else:
    child = os.fork()
    if child == 0:
        time.sleep(60)
print(child, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "worker.lock"


def test_a_lock_held_by_another_process_is_seen_and_refused(path: Path) -> None:
    with process(HOLDER, path) as holder:
        assert said(holder) == "held"
        assert is_locked(path)
        assert lock_holder(path) == {"pid": 7}
        with pytest.raises(BlockingIOError):
            Lock(path)


def test_a_lock_is_free_once_its_holder_has_released_it(path: Path) -> None:
    with process(HOLDER, path) as holder:
        assert said(holder) == "held"
        tell(holder)
        assert said(holder) == "released"
        assert not is_locked(path)
        Lock(path).release()


def test_sigkill_of_the_holder_frees_the_lock_at_once(path: Path) -> None:
    with process(HOLDER, path) as holder:
        assert said(holder) == "held"
        holder.kill()
        holder.wait()
        assert not is_locked(path)
        Lock(path).release()


def test_looking_at_a_lock_neither_takes_nor_frees_it(path: Path) -> None:
    with process(HOLDER, path) as holder:
        assert said(holder) == "held"
        assert all(is_locked(path) for _ in range(3))
    assert not is_locked(path)
    with process(HOLDER, path) as next_holder:
        assert said(next_holder) == "held"
    lock = Lock(path)
    assert is_locked(path)  # seen by the process itself too: each opening of the file counts alone
    lock.release()


def test_a_file_without_a_holder_means_nothing_whatever_it_says(path: Path) -> None:
    assert not is_locked(path)
    assert not path.exists()
    path.write_text(f'{{"pid": {os.getpid()}}}')
    assert not is_locked(path)
    assert lock_holder(path) is None
    Lock(path).release()


def test_a_holder_that_has_not_said_who_it_is_is_no_error(path: Path) -> None:
    path.write_text("{half of someth")
    lock = Lock(path)
    assert lock_holder(path) is None
    lock.describe({"pid": 1})
    assert lock_holder(path) == {"pid": 1}
    lock.release()


@pytest.mark.parametrize("how", ["exec", "fork"])
def test_a_process_that_the_holder_has_started_does_not_keep_the_lock(how: str, path: Path) -> None:
    with process(PARENT, path, how) as parent:
        child = int(said(parent))
        assert is_locked(path)
        parent.kill()
        parent.wait()
        try:
            until = time.monotonic() + 30
            while is_locked(path):  # a child that was forked a moment ago has not run yet
                os.kill(child, 0)
                assert time.monotonic() < until
                time.sleep(0.01)
            os.kill(child, 0)
        finally:
            os.kill(child, 9)


def test_of_twenty_processes_at_once_one_becomes_the_owner(path: Path) -> None:
    with ExitStack() as stack:
        crowd = [stack.enter_context(process(CONTENDER, path)) for _ in range(20)]
        assert {said(one) for one in crowd} == {"ready"}
        for one in crowd:
            tell(one)
        assert sorted(said(one) for one in crowd) == ["owner"] + ["refused"] * 19
        assert is_locked(path)
    assert not is_locked(path)


def test_an_error_that_is_no_holder_is_not_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "nowhere" / "x.lock")
    assert not is_locked(tmp_path / "nowhere" / "x.lock")


@pytest.mark.parametrize(
    ("lie", "truth"),
    [({}, True), ({"start_ticks": 1}, False), ({"boot_id": "of another boot"}, False), ({"start_ticks": None}, False)],
)
def test_a_process_is_known_by_its_number_its_start_and_the_boot(lie: dict[str, object], truth: bool) -> None:
    assert is_process({**this_process(), **lie}) is truth


def test_nobody_is_known_by_a_number_alone() -> None:
    assert not is_process({"pid": os.getpid()})
    assert not is_process({**this_process(), "pid": 1})
