"""Locks that live exactly as long as the process that holds them."""

import errno
import fcntl
import json
import os
import struct
from pathlib import Path
from typing import Any

from daemon.core import files

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2) on 64-bit Linux


class Lock:
    """An exclusive lock held by this process until it ends, however it ends.

    An open-file-description lock of Linux: it can be looked at without being taken, no child has it, neither by fork
    nor by exec, and a stale file means nothing.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
        except OSError as error:
            os.close(self._descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(errno.EAGAIN, "held by another process", str(path)) from None
            raise
        # A child that outlives this process would hold its lock on: whoever waits for its end would wait for ever.
        os.register_at_fork(after_in_child=self.release)

    def describe(self, value: dict[str, Any]) -> None:
        """Write into the lock file who holds it; for people and for adoption, never for deciding who lives."""
        assert self._descriptor is not None, "described while it is held"
        data = json.dumps(value).encode()
        os.pwrite(self._descriptor, data, 0)
        os.ftruncate(self._descriptor, len(data))

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None  # by now the number may name another file


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock on `path`. Does not touch the lock, and needs no right to write."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
    finally:
        os.close(descriptor)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def lock_holder(path: Path) -> dict[str, Any] | None:
    """What the holder wrote into the lock file, or None where nobody holds it or it has not written yet."""
    if not is_locked(path):
        return None
    try:
        return files.read_json(path)
    except ValueError:
        return None


def this_process() -> dict[str, Any]:
    """Which process this is, so that nobody can be taken for it: its number alone is given again to others."""
    return {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid()), "boot_id": boot_id()}


def is_process(who: dict[str, Any]) -> bool:
    """Whether the process that called itself so is the one that has its number now.

    Ticks since the boot, not the time of day: a clock that is set would make a stranger of everybody.
    """
    ticks = start_ticks(who["pid"])
    return ticks is not None and (ticks, boot_id()) == (who.get("start_ticks"), who.get("boot_id"))


def start_ticks(pid: int) -> int | None:
    """When a living process began, in clock ticks since the boot; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may hold anything
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[19])  # field 22 of proc_pid_stat(5)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _whole_file(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)
