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

    An open-file-description lock of Linux: it can be looked at without being taken, is not given to a child by exec,
    and a stale file means nothing. A process that forks after taking it shares it with the child.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
        except OSError as error:
            os.close(self._descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(errno.EAGAIN, "held by another process", str(path)) from None
            raise

    def describe(self, value: dict[str, Any]) -> None:
        """Write into the lock file who holds it; for people and for adoption, never for deciding who lives."""
        data = json.dumps(value).encode()
        os.pwrite(self._descriptor, data, 0)
        os.ftruncate(self._descriptor, len(data))

    def release(self) -> None:
        os.close(self._descriptor)


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


def _whole_file(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)
