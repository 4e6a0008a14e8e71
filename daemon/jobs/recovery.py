"""What happened -> what to do: two pure tables."""

from dataclasses import dataclass
from enum import StrEnum

from daemon.core.attempts import ExitInfo, Outcome
from daemon.core.errors import WorkerExit
from daemon.core.heartbeat import Phase

MAX_ATTEMPTS_WITHOUT_PROGRESS = 3
MAX_NOT_FINITE = 3  # attempts of a job that end so: the last had a quarter of the rate, and left rows out


GAVE_UP = 1  # exit code of a process that its own watch has ended: Python's faulthandler knows no other


class Ending(StrEnum):
    """How an attempt ended."""

    DONE = "done"
    PAUSED = "paused"
    STOPPED = "stopped"
    BAD_DATA = "bad_data"
    BAD_CONFIG = "bad_config"
    OUT_OF_MEMORY = "out_of_memory"
    NOT_FINITE = "not_finite"
    GPU = "gpu"
    DISK_FULL = "disk_full"
    BUG = "bug"
    KILLED = "killed"
    GENERATION_HUNG = "generation_hung"  # inside a library, where nothing but the end of the process helps
    VANISHED = "vanished"  # its parent, the fork server, went with it: the machine went down, or all of it was killed
    NOT_STARTED = "not_started"  # the worker never came to life; nothing of the job was tried
    OTHER_PROTOCOL = "other_protocol"  # the same: it is of another version than the daemon


class Action(StrEnum):
    """What to do about it."""

    GATE = "gate"  # judge the final checkpoint
    GO_ON = "go_on"  # a new attempt from the newest verified checkpoint
    FAIL = "fail"  # the job goes to failed
    PAUSE = "pause"  # the queue waits until it is mended; the job keeps its place


@dataclass(frozen=True)
class Decision:
    action: Action
    reason: str


@dataclass(frozen=True)
class Tally:
    """What the attempts of a job have come to since it began, or was tried again by hand."""

    without_progress: int = 0  # failed ones that began where the newest one began
    not_finite: int = 0  # those that ended for numbers that are not finite
    micro_batch_rows: int = 1  # of the newest


def classify(outcome: Outcome | None, exit_info: ExitInfo | None, phase: Phase | None) -> tuple[Ending, str]:
    """How an ended attempt ended, and why, in words. `phase`: in which its heart beat last; None if it never did."""
    started = phase is not None
    if outcome is not None:
        return Ending(outcome.kind), outcome.message
    if exit_info is not None and exit_info.code == WorkerExit.BUSY:
        return Ending.NOT_STARTED, "another worker held the workspace"
    if exit_info is not None and exit_info.code == WorkerExit.OTHER_PROTOCOL:
        return Ending.OTHER_PROTOCOL, "the installed package is of another version than the daemon that runs"
    if exit_info is not None and exit_info.code == WorkerExit.DISK_FULL:
        return Ending.DISK_FULL, "the disk did not take what the worker had to write"
    if not started and (exit_info is None or exit_info.code is None):
        return Ending.NOT_STARTED, "the worker never came to life"
    if phase is Phase.GENERATE and exit_info is not None and exit_info.code == GAVE_UP:
        return Ending.GENERATION_HUNG, "generation hung inside a library, and its process was ended"
    if exit_info is not None and exit_info.signal is not None:
        return Ending.KILLED, f"the worker was ended by signal {exit_info.signal}"
    if exit_info is not None:
        return Ending.KILLED, f"the worker vanished without a word, with exit code {exit_info.code}"
    return Ending.VANISHED, "the worker vanished together with its fork server (the machine went down?)"


def decide(ending: Ending, reason: str, tally: Tally) -> Decision:
    """What to do after an attempt, which the tally counts already."""
    if ending is Ending.DONE:
        return Decision(Action.GATE, reason)
    if ending in (Ending.PAUSED, Ending.STOPPED, Ending.NOT_STARTED, Ending.VANISHED, Ending.GENERATION_HUNG):
        return Decision(Action.GO_ON, reason)
    if ending is Ending.OUT_OF_MEMORY:
        return _after_out_of_memory(reason, tally.micro_batch_rows)
    if ending in (Ending.BAD_CONFIG, Ending.DISK_FULL, Ending.OTHER_PROTOCOL):
        return Decision(Action.PAUSE, reason)
    if ending is Ending.BAD_DATA:
        return Decision(Action.FAIL, reason)
    if ending is Ending.NOT_FINITE and tally.not_finite >= MAX_NOT_FINITE:
        return Decision(Action.FAIL, f"{tally.not_finite} attempts were not finite; the last one: {reason}")
    if tally.without_progress >= MAX_ATTEMPTS_WITHOUT_PROGRESS:
        return Decision(Action.FAIL, f"{tally.without_progress} attempts without progress; the last one: {reason}")
    return Decision(Action.GO_ON, reason)


def _after_out_of_memory(reason: str, micro_batch_rows: int) -> Decision:
    """Fewer rows at a time is the one way on; with one row there is none."""
    if micro_batch_rows > 1:
        return Decision(Action.GO_ON, reason)
    return Decision(Action.FAIL, f"one row at a time takes more memory than there is: {reason}")
