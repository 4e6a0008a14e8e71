"""Stopping a worker is a ladder: ask, wait, insist; whoever makes progress towards its end is waited for."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from daemon.core.attempts import PROTOCOL, Control
from daemon.core.heartbeat import Beat, Phase
from daemon.core.paths import Attempt
from daemon.service.context import Context

ASK_SECONDS = 10.0  # without a sign of progress; insisting then says nothing new to a healthy worker
GRACE_SECONDS = 20.0  # the same, from SIGTERM to SIGKILL, at the least
GRACE_SAVES = 3  # … and as long as so many of the longest save measured
HURRY_SECONDS = 1.0  # from SIGTERM to SIGKILL for one who asked twice: what it takes to write the stacks
VAIN_SECONDS = 10.0  # after SIGKILL; who is still there hangs in the kernel
STEPS_TO_OBEY = 2  # the one under way, and one that began while the order was written


class Rung(IntEnum):
    """How far a stop has come."""

    ASK = 1  # the order is written
    INSIST = 2  # stacks, SIGCONT, SIGTERM
    KILL = 3  # SIGKILL of the process group
    IN_VAIN = 4  # nothing more can be done from here


@dataclass(frozen=True)
class Sign:
    """What is seen of a worker at one moment."""

    beat: Beat | None
    traffic: int  # bytes that it has read and written


def due(rung: Rung, quiet_seconds: float, longest_save: float, hurry: bool = False) -> Rung:
    """The rung to be on after so many seconds on this one without a sign of progress."""
    if rung is Rung.IN_VAIN:
        return rung
    grace = max(GRACE_SECONDS, GRACE_SAVES * longest_save)
    patience = {Rung.ASK: ASK_SECONDS, Rung.INSIST: grace, Rung.KILL: VAIN_SECONDS}
    if hurry:
        patience |= {Rung.ASK: 0.0, Rung.INSIST: HURRY_SECONDS}
    return Rung(rung + 1) if quiet_seconds >= patience[rung] else rung


def advances(asked: Sign, before: Sign, now: Sign) -> bool:
    """Whether a worker that was asked to end is on its way there."""
    phase = now.beat.phase if now.beat else Phase.LOAD
    if phase in (Phase.SAVE, Phase.LOAD) and now.traffic > before.traffic:
        return True  # one call to a library may take minutes there, without a beat
    steps = (now.beat.job_step if now.beat else 0) - (asked.beat.job_step if asked.beat else 0)
    return now.beat != before.beat and steps <= STEPS_TO_OBEY  # one that goes on and on has not heard


@dataclass
class Ladder:
    """The stop of one attempt, as far as it has come."""

    attempt: Attempt
    asked: Sign
    last: Sign
    since: float  # of its newest sign of progress, or of climbing to this rung
    rung: Rung = Rung.ASK


class Stopping:
    """Ends the worker where it is to end: for SIGTERM, pause, stop, skip, and where its protocol is not ours."""

    def __init__(self, context: Context, longest_save: Callable[[], float]) -> None:
        self._context, self._longest_save = context, longest_save
        self._ladder: Ladder | None = None

    @property
    def in_vain(self) -> bool:
        """Whether all was tried, and somebody still holds the worker's lock."""
        return self._ladder is not None and self._ladder.rung is Rung.IN_VAIN

    async def step(self, terminating: int) -> None:
        """One look; `terminating` counts the SIGTERMs that the daemon itself got."""
        attempt = self._context.runner.attempt()
        if attempt is None or not (terminating or self._is_to_end(attempt)):
            self._ladder = None
            return
        if self._ladder is None or self._ladder.attempt != attempt:
            self._ask(attempt)
            sign = self._sign()
            self._ladder = Ladder(attempt, sign, sign, time.monotonic())
        self._climb(self._ladder, hurry=terminating > 1)

    def _is_to_end(self, attempt: Attempt) -> bool:
        desired = self._context.desired
        wished = desired.paused or desired.stop == "now" or desired.skip == attempt.job
        return wished or self._context.runner.other_protocol is not None

    def _climb(self, ladder: Ladder, hurry: bool) -> None:
        sign = self._sign()
        if advances(ladder.asked, ladder.last, sign) and not hurry:
            ladder.since = time.monotonic()
        ladder.last = sign
        rung = due(ladder.rung, time.monotonic() - ladder.since, self._longest_save(), hurry)
        if rung is not ladder.rung:
            ladder.rung, ladder.since = rung, time.monotonic()
            {Rung.INSIST: self._insist, Rung.KILL: self._kill, Rung.IN_VAIN: self._give_up}[rung](ladder)

    def _sign(self) -> Sign:
        return Sign(self._context.runner.beat(), self._context.runner.traffic())

    # ---- the rungs ----

    def _ask(self, attempt: Attempt) -> None:
        runner, other = self._context.runner, self._context.runner.other_protocol
        if other is not None:
            message = f"the worker speaks protocol {other}, this daemon {PROTOCOL}: it saves, and the next one goes on"
            self._context.tracker.event("protocol_changed", message, job=attempt.job)
        if other is not None or not attempt.root.is_dir():
            runner.send(signal.SIGTERM)  # which every protocol understands, and one whose folder was moved away
        elif not attempt.control.exists():
            self._write_order(attempt)

    def _write_order(self, attempt: Attempt) -> None:
        try:
            Control(action="stop", reason="SIGTERM").save(attempt.control)
        except OSError:
            self._context.runner.send(signal.SIGTERM)  # which it hears too, with no file
            raise

    def _insist(self, ladder: Ladder) -> None:
        self._context.runner.ask_for_stacks()
        self._context.runner.send(signal.SIGCONT, signal.SIGTERM)
        self._say("worker_told_again", "the worker does not end as asked: SIGTERM", ladder)

    def _kill(self, ladder: Ladder) -> None:
        if not self._context.runner.kill():
            ladder.rung = Rung.IN_VAIN
            message = "nobody known holds status/worker.lock, so nobody was signalled; see: lsof status/worker.lock"
            self._say("worker_unknown", message, ladder)
            return
        self._say("worker_killed", "the worker did not end on SIGTERM: SIGKILL, to all that it started", ladder)

    def _give_up(self, ladder: Ladder) -> None:
        self._say("worker_unkillable", "the worker is still there after SIGKILL: it hangs in the kernel", ladder)

    def _say(self, event: str, message: str, ladder: Ladder) -> None:
        stacks = ladder.attempt.stacks
        there = stacks.is_file() and stacks.stat().st_size > 0
        where = str(stacks.relative_to(self._context.workspace.root)) if there else None
        said = f"{message}; what its threads were doing: {where}" if where else message
        self._context.tracker.event(event, said, job=ladder.attempt.job, rung=ladder.rung.name.lower(), stacks=where)
