"""On a worker's PYTHONPATH: lets it hang, train at leisure, or have a slow disk, while a file of that name is there."""

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ.get("STUCK_FOLDER", "/nowhere"))
beat, sync = time.monotonic_ns, os.fsync


def monotonic_ns() -> int:
    """Asked for at every beat of the heart, by the thread that trains."""
    if (FOLDER / "hang").exists():
        hang_in_a_library()
    if (FOLDER / "leisure").exists():
        time.sleep(0.05)
    return beat()


def hang_in_a_library() -> None:
    """For ever, with the interpreter's lock held: no handler of Python's will run. A child of its own lives on."""
    child = subprocess.Popen(["sleep", "600"])
    (FOLDER / "child").write_text(str(child.pid))
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


def fsync(descriptor: int) -> None:
    """A disk that takes a little at a time, without a beat meanwhile."""
    while (FOLDER / "slow").exists():
        (FOLDER / "written").write_bytes(bytes(100))
        time.sleep(0.2)
    sync(descriptor)


if "daemon.worker" in sys.orig_argv:
    time.monotonic_ns, os.fsync = monotonic_ns, fsync
