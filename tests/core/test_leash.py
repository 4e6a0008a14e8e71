"""A command on the leash ends with its time, with its starter and with the leash itself; so does all of its group."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.core import leash, locks

SECONDS = 60  # for what takes a moment, on a very busy machine
# Writes who it and a child of its are, both deaf to SIGTERM where asked, and sleeps.
SLEEPER = """
trap '{trap}' TERM
sh -c "trap '{trap}' TERM; while :; do sleep 0.1; done" &
echo $$ $! > pids.part; mv pids.part pids
while :; do sleep 0.1; done
"""


class Held:
    """A leash that this test has started."""

    def __init__(self, folder: Path, command: list[str], seconds: float = SECONDS, text: str = "") -> None:
        self.folder = folder
        with (folder / "said").open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "daemon.core.leash"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                cwd=folder,
            )
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"command": command, "seconds": seconds, "text": text}).encode() + b"\n")
        self.process.stdin.flush()

    def ended(self) -> dict[str, Any]:
        assert self.process.stdout
        value: dict[str, Any] = json.loads(self.process.stdout.read())
        self.process.wait(SECONDS)
        return value

    def said(self) -> bytes:
        return (self.folder / "said").read_bytes()

    def pids(self) -> list[int]:
        wait_until(lambda: (self.folder / "pids").exists())
        return [int(pid) for pid in (self.folder / "pids").read_text().split()]


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def gone(pids: list[int]) -> bool:
    return all(locks.start_ticks(pid) is None or _is_zombie(pid) for pid in pids)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[..., Held]]:
    held: list[Held] = []

    def make(command: list[str] | str, **given: Any) -> Held:
        held.append(Held(tmp_path, command if isinstance(command, list) else ["sh", "-c", command], **given))
        return held[-1]

    yield make
    for one in held:
        if one.process.poll() is None:
            one.process.kill()
        with one.process:
            pass  # its pipes are closed
        for pid in one.pids() if (tmp_path / "pids").exists() else ():
            if not gone([pid]):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("code", [0, 1, 3, 127])
def test_the_exit_code_and_the_last_line_come_back(code: int, hold: Callable[..., Held]) -> None:
    held = hold(f"echo first; echo last >&2; exit {code}")
    assert held.ended() == {"code": code, "timed_out": False, "last_words": "last"}
    assert held.said() == b"first\nlast\n"


def test_it_reads_what_it_is_given(hold: Callable[..., Held]) -> None:
    held = hold("wc -c", text="x" * 1_000_000)
    assert held.ended()["last_words"] == "1000000"


def test_it_need_not_read_what_it_is_given(hold: Callable[..., Held]) -> None:
    assert hold("exit 1", text="x" * 1_000_000).ended()["code"] == 1


def test_what_cannot_be_started_is_said(hold: Callable[..., Held], tmp_path: Path) -> None:
    (tmp_path / "closed").write_text("exit 0")
    assert hold(["./nothing"]).ended() == {"error": "./nothing: No such file or directory"}
    assert hold(["./closed"]).ended() == {"error": "./closed: Permission denied"}


def test_of_what_it_says_only_so_much_is_kept_and_it_is_never_held_up(hold: Callable[..., Held]) -> None:
    held = hold("yes | head -c 5000000; echo end")
    assert held.ended()["last_words"] == "end"
    assert len(held.said()) == leash.MOST_BYTES


@pytest.mark.parametrize("trap", ["exit 0", ""], ids=["obeys", "deaf"])
def test_at_its_time_it_ends_with_its_group(trap: str, hold: Callable[..., Held]) -> None:
    held = hold(SLEEPER.format(trap=trap), seconds=1)
    pids = held.pids()
    assert held.ended()["timed_out"]
    wait_until(lambda: gone(pids))


def test_what_it_leaves_behind_ends_with_it(hold: Callable[..., Held]) -> None:
    held = hold("sleep 1000 & echo $! > pids; exit 0")
    assert held.ended()["code"] == 0
    wait_until(lambda: gone(held.pids()))


@pytest.mark.parametrize("trap", ["exit 0", ""], ids=["obeys", "deaf"])
def test_with_its_starter_it_ends_with_its_group(trap: str, hold: Callable[..., Held]) -> None:
    held = hold(SLEEPER.format(trap=trap))
    pids = held.pids()
    assert held.process.stdin
    held.process.stdin.close()  # as the kernel does when the starter is killed
    wait_until(lambda: gone(pids))
    assert held.process.wait(SECONDS) == 0


def test_with_the_leash_itself_the_command_ends(hold: Callable[..., Held]) -> None:
    held = hold(SLEEPER.format(trap=""))
    command = held.pids()[0]
    held.process.kill()
    wait_until(lambda: gone([command]))
