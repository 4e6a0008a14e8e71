"""The fork server seen from the daemon: start it, hand it attempts, know whether it could start and why not."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from daemon.core.attempts import SERVER_READY
from daemon.core.paths import Workspace

START_SECONDS = 120.0  # until it is ready, and from a hand-over to the worker's lock: a slow disk, at worst
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 300.0  # between two starts of one that cannot, doubled each time
LAST_WORDS = 3  # lines of its log that say why


def server_environment() -> dict[str, str]:
    """The daemon's environment with what a training process needs; the user's own settings win."""
    defaults = {
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow CPU training 12 to 30 times beside a busy neighbour
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",  # where pyarrow is there, it starts a thread at import
    }
    # OpenBLAS starts its threads at import; a process that forks must have none.
    return {**defaults, **os.environ, "OPENBLAS_NUM_THREADS": "1"}


class ForkServer:
    """At most one fork server of this daemon; those of its earlier lives end by themselves and are buried."""

    def __init__(self, workspace: Workspace, wake: Callable[[], None]) -> None:
        self._log, self._wake = workspace.logs / "fork_server.log", wake
        self._process: asyncio.subprocess.Process | None = None
        self._ready = False
        self._started_at, self._log_from = 0.0, 0
        self._failures, self._again_at = 0, 0.0
        self._killed_once = False  # while it started, since one was ready
        self.failure: str | None = None  # why the last one could not start, in its own words
        # Executed anew, the daemon has the fork servers of its earlier life as children that it must bury.
        self._inherited = [child.pid for child in psutil.Process().children()]

    async def ensure(self) -> bool:
        """Have one: its imports take seconds that a dropped file need not wait for.

        False while nothing is to be handed to it: the last one could not start, and this one has still to prove itself.
        """
        self._look()
        if not self.running:
            if time.monotonic() < self._again_at:
                return False
            await self._start()
        return self._ready or not self._failures

    async def hand(self, folder: Path) -> None:
        """Let it run the attempt in this folder."""
        if self._process and self._process.stdin:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a dead one: the attempt is not started
                self._process.stdin.write(os.fsencode(folder) + b"\n")
                await self._process.stdin.drain()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def on_trial(self) -> bool:
        """Whether one starts after another could not."""
        return self.running and self._failures > 0 and not self._ready

    def close(self) -> None:
        """Take no more work: at the end of its input it waits for its child and ends."""
        if self._process and self._process.stdin:
            self._process.stdin.close()
        self._process = None

    def bury(self) -> None:
        """Those of an earlier life that have ended."""
        self._inherited = [pid for pid in self._inherited if not _buried(pid)]

    async def _start(self) -> None:
        with self._log.open("ab") as log:
            self._log_from = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "daemon.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=server_environment(),
                start_new_session=True,
            )
        self._ready, self._started_at = False, time.monotonic()
        task = asyncio.create_task(self._process.wait())
        task.add_done_callback(lambda _: self._wake())
        self._ended = task  # a task without a reference may be collected before it is done

    def _look(self) -> None:
        """Notice that it has become ready, or that it could not."""
        if self._process is None or self._ready:
            return
        said = self._said()
        if SERVER_READY in said:
            self._ready, self._failures, self.failure, self._killed_once = True, 0, None, False
        elif self._process.returncode == -signal.SIGKILL and not self._killed_once:
            self._process, self._killed_once = None, True  # from outside; it is started again at once
        elif self._process.returncode is not None:
            self._failures += 1
            pause = min(FIRST_PAUSE_SECONDS * 2 ** (self._failures - 1), LONGEST_PAUSE_SECONDS)
            self._again_at = time.monotonic() + pause
            self.failure = " / ".join(said[-LAST_WORDS:]) or f"ended with {self._process.returncode} without a word"
            self._process = None
        elif time.monotonic() - self._started_at > START_SECONDS:
            self._process.kill()  # it hangs in an import: the next look finds it dead

    def _said(self) -> list[str]:
        """The lines of the log since this one was started."""
        with self._log.open("rb") as log:
            log.seek(self._log_from)
            lines = log.read().decode(errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()]


def _buried(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
