"""Other processes for tests: started, waited for by a condition with a deadline, looked at, and always ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEADLINE_SECONDS = 30.0


def until(condition: Callable[[], object], seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true within {seconds:g} s"
        time.sleep(0.005)


@contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs this code, with its arguments in `sys.argv[1:]`; killed at the end."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def said(child: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert child.stdout
    return child.stdout.readline().strip()


def tell(child: subprocess.Popen[str], line: str = "") -> None:
    assert child.stdin
    child.stdin.write(line + "\n")
    child.stdin.flush()


# ---- of others, by their number ----


def send_sigkill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(word) for word in path.read_text().split()]
    return found


def fork_servers_of(daemon: int) -> list[int]:
    """The children of a daemon that are fork servers by now."""
    return [pid for pid in children_of(daemon) if b"daemon.worker\0" in command_of(pid)]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _stat(pid: int) -> list[str]:
    """What stands in /proc/PID/stat after the name: the state first."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


def state_of(pid: int) -> str | None:
    """As the kernel names it: Z is dead and not buried yet; None where there is no such process."""
    return next(iter(_stat(pid)), None)


def start_time_of(pid: int) -> str:
    """Tells a process from a later one of the same number; empty where it is dead."""
    stat = _stat(pid)
    return stat[19] if stat and stat[0] not in "ZX" else ""
