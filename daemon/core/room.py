"""Room on the disk: whether an error says that there is none, and whether there is some now."""

import errno
import os
import re
from pathlib import Path

READ_ONLY = "is read-only"
# What a disk says that takes nothing more, and what that is for people. It is never the fault of a file or a model.
REFUSALS = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full: the quota of this user is used up",
    errno.EROFS: READ_ONLY,
}
REMEDY = "free some space, or make the disk writable (df -h, df -i, mount); all goes on by itself then"
LEAST_BYTES = 1 << 16  # what a few records take
LEAST_FILES = 32  # what a checkpoint takes
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors has the number of an error in its words only


def refusal(error: BaseException | None) -> str | None:
    """What the disk said, in words, where that is behind an error, however often it was wrapped; else None."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else _number_in(str(error))
        if number in REFUSALS:
            return REFUSALS[number]
        error = error.__cause__ or error.__context__
    return None


def _number_in(words: str) -> int | None:
    found = _RUST_ERROR.search(words)
    return int(found[1]) if found else None


def lacking(folder: Path, needed: int = LEAST_BYTES) -> str | None:
    """Why the disk of a folder does not take so many bytes, in words; None where it does. A quota is not seen."""
    info = os.statvfs(folder)
    if info.f_flag & os.ST_RDONLY:
        return READ_ONLY
    if info.f_bavail * info.f_frsize < needed:
        return REFUSALS[errno.ENOSPC]
    if info.f_files and info.f_favail < LEAST_FILES:  # some filesystems do not count files
        return "has no room for more files"
    return None
