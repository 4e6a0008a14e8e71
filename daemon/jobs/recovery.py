"""What happened -> what to do: two pure tables."""

from dataclasses import dataclass
from enum import StrEnum

from daemon.core.attempts import ExitInfo, Outcome
from daemon.core.errors import WorkerExit

MAX_ATTEMPTS_WITHOUT_PROGRESS = 3


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


def classify(outcome: Outcome | None, exit_info: ExitInfo | None, started: bool) -> tuple[Ending, str]:
    """How an ended attempt ended, and why, in words. `started`: it came as far as its first heartbeat."""
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
    if exit_info is not None and exit_info.signal is not None:
        return Ending.KILLED, f"the worker was ended by signal {exit_info.signal}"
    if exit_info is not None:
        return Ending.KILLED, f"the worker vanished without a word, with exit code {exit_info.code}"
    return Ending.VANISHED, "the worker vanished together with its fork server (the machine went down?)"


def decide(ending: Ending, reason: str, without_progress: int) -> Decision:
    """What to do after an attempt; `without_progress` counts the failed attempts since the job last advanced."""
    if ending is Ending.DONE:
        return Decision(Action.GATE, reason)
    if ending in (Ending.PAUSED, Ending.STOPPED, Ending.NOT_STARTED, Ending.VANISHED):
        return Decision(Action.GO_ON, reason)
    if ending in (Ending.BAD_CONFIG, Ending.DISK_FULL, Ending.OTHER_PROTOCOL):
        return Decision(Action.PAUSE, reason)
    if ending is Ending.BAD_DATA:
        return Decision(Action.FAIL, reason)
    if without_progress >= MAX_ATTEMPTS_WITHOUT_PROGRESS:
        return Decision(Action.FAIL, f"{without_progress} attempts without progress; the last one: {reason}")
    return Decision(Action.GO_ON, reason)
