"""Every error raised on purpose, with its remedy, and the exit codes that programs rely on."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the commands and of the daemon (docs/reference/exit-codes.md)."""

    GOOD = 0
    PROBLEM = 1
    USAGE = 2
    NOT_RUNNING = 3
    NOT_FOUND = 4
    REFUSED = 5
    TIMED_OUT = 6
    BAD_DATA = 7
    LOCKED = 75  # EX_TEMPFAIL of sysexits.h: another daemon holds the workspace
    BAD_CONFIG = 78  # EX_CONFIG of sysexits.h


class WorkerExit(IntEnum):
    """Exit codes of one attempt; the reason in words is in its outcome.json."""

    DONE = 0
    PAUSED = 10
    STOPPED = 11
    BAD_DATA = 20
    BAD_CONFIG = 21
    OUT_OF_MEMORY = 30
    NOT_FINITE = 31
    GPU = 32
    DISK_FULL = 33
    BUG = 40
    BUSY = 41  # another worker holds the workspace: this attempt did nothing
    OTHER_PROTOCOL = 42  # the daemon is of another version than the installed package: this attempt did nothing


class DaemonError(Exception):
    """What went wrong in one sentence, and what to do about it in another."""

    exit = Exit.PROBLEM

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class UsageError(DaemonError):
    exit = Exit.USAGE


class NotRunning(DaemonError):
    exit = Exit.NOT_RUNNING


class NotFound(DaemonError):
    exit = Exit.NOT_FOUND


class Refused(DaemonError):
    exit = Exit.REFUSED


class TimedOut(DaemonError):
    exit = Exit.TIMED_OUT


class BadData(DaemonError):
    exit = Exit.BAD_DATA


class Locked(DaemonError):
    exit = Exit.LOCKED


class BadConfig(DaemonError):
    exit = Exit.BAD_CONFIG
