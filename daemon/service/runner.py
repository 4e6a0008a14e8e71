"""The worker seen from the daemon: hand over, follow, adopt, signal; one path for own and inherited."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.core import heartbeat, locks, room
from daemon.core.attempts import PROTOCOL, ExitInfo, Outcome
from daemon.core.heartbeat import Beat
from daemon.core.paths import Attempt, Workspace
from daemon.jobs.recovery import Ending
from daemon.service import progress
from daemon.service.fork_server import START_SECONDS, ForkServer

EXIT_RECORD_SECONDS = 1.0  # the fork server writes exit.json this soon after a death, or never
IDLE_SECONDS = 600.0  # without work the fork server gives its memory back


class Runner:
    """Starts attempts and tells how they ended. Whether a worker lives is known by the lock that it holds."""

    def __init__(self, workspace: Workspace, wake: Callable[[], None]) -> None:
        self._workspace, self._wake = workspace, wake
        self.server = ForkServer(workspace, wake)
        self.handed: set[Attempt] = set()  # in this life of the daemon
        self._handed_over: tuple[Attempt, float] | None = None
        self._idle_since = time.monotonic()
        self._followed: dict[int, int] = {}  # pid -> pidfd
        self._free_since: tuple[Attempt, float] | None = None
        self._seen_alive: Attempt | None = None  # the attempt whose worker lived at the last look

    async def ensure_server(self) -> bool:
        """Whether a fork server is there, or coming, to which an attempt may be handed."""
        if not self.server.running:
            self._idle_since = time.monotonic()
        return await self.server.ensure()

    async def hand_over(self, attempt: Attempt) -> None:
        """Let the fork server run this attempt."""
        self.handed.add(attempt)
        self._handed_over = (attempt, time.monotonic())
        await self.server.hand(attempt.root)

    def rest(self) -> None:
        """Give the fork server's memory back after a long time without work; bury those of an earlier life."""
        self.server.bury()
        if self.alive() or self.server.on_trial:
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > IDLE_SECONDS:
            self.server.close()

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

    @property
    def other_protocol(self) -> int | None:
        """The living worker's protocol, where it is another than this daemon's."""
        holder = self.holder()
        return holder["protocol"] if holder and holder.get("protocol", PROTOCOL) != PROTOCOL else None

    def follow(self) -> None:
        """Be woken when the living worker ends: a pidfd becomes readable within a millisecond of the death."""
        holder = self.holder()
        if not holder or holder["pid"] in self._followed:
            return
        try:
            descriptor = os.pidfd_open(holder["pid"])
        except ProcessLookupError:
            return
        # Looked at only now that the number is pinned: it may have become a stranger's in between.
        if not locks.is_process(holder):
            os.close(descriptor)
            return
        self._followed[holder["pid"]] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._ended, holder["pid"])

    def _ended(self, pid: int) -> None:
        descriptor = self._followed.pop(pid)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        self._wake()

    # ---- signals: to the living worker and nobody else, by pidfd, after its identity is checked ----

    def send(self, *numbers: signal.Signals) -> None:
        """Signal the worker, if it is there and known."""
        descriptor = self._descriptor()
        if descriptor is not None:
            with contextlib.suppress(ProcessLookupError):
                for number in numbers:
                    signal.pidfd_send_signal(descriptor, number)

    def ask_for_stacks(self) -> None:
        """Let the worker write what each of its threads is doing; one that is not prepared would die of it."""
        holder = self.holder()
        if holder and _catches(holder["pid"], signal.SIGUSR1):
            self.send(signal.SIGUSR1)

    def kill(self) -> bool:
        """End the worker and all that it has started; False where nobody known holds its lock."""
        holder, descriptor = self.holder(), self._descriptor()
        if holder is None or descriptor is None:
            return holder is None and not self.alive()
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(holder["pid"]) == holder["pid"] and locks.is_process(holder):
                os.killpg(holder["pid"], signal.SIGKILL)
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return True

    def _descriptor(self) -> int | None:
        """The pidfd of the living worker; None where it is not known who that is."""
        self.follow()
        holder = self.holder()
        return self._followed.get(holder["pid"]) if holder else None

    # ---- what it is seen to do ----

    def beat(self) -> Beat | None:
        attempt = self.attempt()
        return heartbeat.read(attempt.heartbeat) if attempt else None

    def traffic(self) -> int:
        """Bytes that the living worker has read and written, as the kernel counts them: libraries do so unasked."""
        holder = self.holder()
        try:
            lines = Path(f"/proc/{holder['pid']}/io").read_text().splitlines() if holder else []
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in TRAFFIC)

    def ending(self, attempt: Attempt) -> tuple[Ending, str] | None:
        """How an attempt ended, or None while it runs or is about to."""
        if self.alive():
            self.follow()
            self._free_since, self._seen_alive = None, attempt
            return None
        outcome = Outcome.load(attempt.outcome)
        exit_info = ExitInfo.load(attempt.exit)
        if outcome is None and exit_info is None and self._may_still_come(attempt, attempt.heartbeat.exists()):
            return None
        self._handed_over = self._free_since = self._seen_alive = None
        self._idle_since = time.monotonic()
        return progress.ended_as(attempt)

    def _may_still_come(self, attempt: Attempt, started: bool) -> bool:
        """Whether the fork server may still bring the attempt to life, or the record of its death."""
        if started and room.lacking(attempt.root):
            return True  # nobody can write down how it ended; it must not count as a failure
        handed_at = self._handed_over[1] if self._handed_over and self._handed_over[0] == attempt else None
        if handed_at is None:
            # Adopted: its fork server is of an earlier life of the daemon, and writes the record all the same.
            if self._seen_alive != attempt:
                return False
        elif not self.server.running:
            return False
        elif not started:
            return time.monotonic() - handed_at < START_SECONDS
        if self._free_since is None or self._free_since[0] != attempt:
            self._free_since = (attempt, time.monotonic())
        return time.monotonic() - self._free_since[1] < EXIT_RECORD_SECONDS

    @property
    def impatient(self) -> bool:
        """Whether the loop should look again soon, without an event."""
        waits_for_record, waits_for_life = self._free_since is not None, self._handed_over is not None
        return self.server.on_trial or waits_for_record or (waits_for_life and not self._followed)


TRAFFIC = ("rchar", "wchar", "read_bytes", "write_bytes")  # of proc_pid_io(5): through calls, and through mapped pages


def _catches(pid: int, number: signal.Signals) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)
