"""The worker seen from the daemon: start the fork server, hand over, follow, adopt; one path for own and inherited."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from daemon.core import heartbeat, locks, room
from daemon.core.attempts import ExitInfo, Outcome
from daemon.core.heartbeat import Beat
from daemon.core.paths import Attempt, Workspace
from daemon.jobs.recovery import Ending, classify

START_SECONDS = 120.0  # from the hand-over to the worker's lock: imports on a slow disk, at worst
EXIT_RECORD_SECONDS = 1.0  # the fork server writes exit.json this soon after a death, or never
IDLE_SECONDS = 600.0  # without work the fork server gives its memory back
SERVER_LOG = "fork_server.log"


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


class Runner:
    """Starts attempts and tells how they ended. Whether a worker lives is known by the lock that it holds."""

    def __init__(self, workspace: Workspace, wake: Callable[[], None]) -> None:
        self._workspace, self._wake = workspace, wake
        self._server: asyncio.subprocess.Process | None = None
        self._handed_over: tuple[Attempt, float] | None = None
        self._idle_since = time.monotonic()
        self._followed: dict[int, int] = {}  # pid -> pidfd
        self._free_since: tuple[Attempt, float] | None = None
        # Executed anew, the daemon has the fork servers of its earlier life as children that it must bury.
        self._inherited = [child.pid for child in psutil.Process().children()]

    # ---- the fork server ----

    async def ensure_server(self) -> None:
        """Start the fork server where none runs: its imports take seconds that a dropped file need not wait for."""
        if self._server and self._server.returncode is None:
            return
        log = (self._workspace.logs / SERVER_LOG).open("ab")
        with log:
            self._server = await asyncio.create_subprocess_exec(
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
        self._idle_since = time.monotonic()
        task = asyncio.create_task(self._server.wait())
        task.add_done_callback(lambda _: self._wake())
        self._server_ended = task  # a task without a reference may be collected before it is done

    async def hand_over(self, attempt: Attempt) -> None:
        """Let the fork server run this attempt."""
        await self.ensure_server()
        assert self._server and self._server.stdin
        self._handed_over = (attempt, time.monotonic())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a dead server: `ending` says not started
            self._server.stdin.write(os.fsencode(attempt.root) + b"\n")
            await self._server.stdin.drain()

    def rest(self) -> None:
        """Give the fork server's memory back after a long time without work; bury those of an earlier life."""
        self._inherited = [pid for pid in self._inherited if not _buried(pid)]
        if self.alive():
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        """Take no more work: at the end of its input the fork server waits for its child and ends."""
        if self._server and self._server.stdin:
            self._server.stdin.close()
        self._server = None

    # ---- the worker ----

    def alive(self) -> bool:
        """Whether a worker lives in this workspace, whoever started it."""
        return locks.is_locked(self._workspace.worker_lock)

    def holder(self) -> dict[str, Any] | None:
        """Who the living worker says it is."""
        return locks.lock_holder(self._workspace.worker_lock)

    def attempt(self) -> Attempt | None:
        """The attempt that the living worker runs."""
        holder = self.holder()
        return Attempt(Path(holder["attempt"])) if holder else None

    def follow(self) -> None:
        """Be woken when the living worker ends: a pidfd becomes readable within a millisecond of the death."""
        holder = self.holder()
        if not holder or holder["pid"] in self._followed:
            return
        try:
            descriptor = os.pidfd_open(holder["pid"])
        except ProcessLookupError:
            return
        if not _same_process(holder):
            os.close(descriptor)
            return
        self._followed[holder["pid"]] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._ended, holder["pid"])

    def _ended(self, pid: int) -> None:
        descriptor = self._followed.pop(pid)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        self._wake()

    def send(self, number: signal.Signals) -> None:
        """Signal the living worker, and nobody else: by pidfd, after its identity is checked."""
        holder = self.holder()
        descriptor = self._followed.get(holder["pid"]) if holder else None
        if descriptor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)

    def beat(self) -> Beat | None:
        attempt = self.attempt()
        return heartbeat.read(attempt.heartbeat) if attempt else None

    def ending(self, attempt: Attempt) -> tuple[Ending, str] | None:
        """How an attempt ended, or None while it runs or is about to."""
        if self.alive():
            self.follow()
            self._free_since = None
            return None
        outcome = Outcome.load(attempt.outcome)
        exit_info = ExitInfo.load(attempt.exit)
        started = attempt.heartbeat.exists()
        if outcome is None and exit_info is None and self._may_still_come(attempt, started):
            return None
        self._handed_over = None
        self._idle_since = time.monotonic()
        return classify(outcome, exit_info, started)

    def _may_still_come(self, attempt: Attempt, started: bool) -> bool:
        """Whether the fork server may still bring the attempt to life, or the record of its death."""
        if started and room.lacking(attempt.root):
            return True  # nobody can write down how it ended; it must not count as a failure
        served = self._server is not None and self._server.returncode is None
        mine = self._handed_over is not None and self._handed_over[0] == attempt
        if not (served and mine):
            return False
        assert self._handed_over
        if not started:
            return time.monotonic() - self._handed_over[1] < START_SECONDS
        if self._free_since is None or self._free_since[0] != attempt:
            self._free_since = (attempt, time.monotonic())
        return time.monotonic() - self._free_since[1] < EXIT_RECORD_SECONDS

    @property
    def impatient(self) -> bool:
        """Whether the loop should look again soon, without an event."""
        return self._handed_over is not None and not self._followed


def _buried(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _same_process(holder: dict[str, Any]) -> bool:
    try:
        return bool(abs(psutil.Process(holder["pid"]).create_time() - holder["start_time"]) < 1.0)
    except psutil.NoSuchProcess:
        return False
