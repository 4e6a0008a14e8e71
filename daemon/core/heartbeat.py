"""The heartbeat page: a small memory-mapped file that the training thread advances and the daemon reads.

It is a counter of progress, not of time: a thread that merely lives does not advance it.
"""

import mmap
import os
import struct
import sys
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

PAGE_BYTES = 4096
_MAGIC = b"TDBEAT1\0"
# magic, sequence (odd while writing), phase, job step, micro-batches, tokens, bytes saved, monotonic nanoseconds
_LAYOUT = struct.Struct("=8s7Q")
_UNTIL_SEQUENCE = 16  # bytes
_READ_TRIES = 100


class Phase(IntEnum):
    """What the worker is doing; each phase has its own idea of slow."""

    LOAD = 1
    TRAIN = 2
    EVALUATE = 3
    GENERATE = 4
    SAVE = 5


@dataclass(frozen=True)
class Beat:
    """One reading of the page."""

    phase: Phase
    job_step: int
    micro_batches: int
    tokens: int
    bytes_saved: int
    monotonic_ns: int


class Heartbeat:
    """The writer's side; one writer."""

    def __init__(self, path: Path) -> None:
        try:
            path.write_bytes(bytes(PAGE_BYTES))
        except OSError:
            path.unlink(missing_ok=True)  # an empty page would say that the worker had begun
            raise
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        # Words, each stored whole: struct.pack_into would show zeros in between.
        self._words = memoryview(mmap.mmap(descriptor, PAGE_BYTES)).cast("Q")
        os.close(descriptor)
        self._sequence = 0
        self._values = [int(Phase.LOAD), 0, 0, 0, 0]
        self.beat()
        self._words[0] = int.from_bytes(_MAGIC, sys.byteorder)  # last: from now on there is something to read

    def beat(
        self,
        phase: Phase | None = None,
        job_step: int | None = None,
        micro_batches: int = 0,
        tokens: int = 0,
        bytes_saved: int = 0,
    ) -> None:
        """Advance: set phase and step where given, add the counts. Costs about a microsecond."""
        values = self._values
        if phase is not None:
            values[0] = int(phase)
        if job_step is not None:
            values[1] = job_step
        values[2] += micro_batches
        values[3] += tokens
        values[4] += bytes_saved
        self._sequence += 2
        words = self._words
        words[1] = self._sequence - 1
        for index, value in enumerate(values, 2):
            words[index] = value
        words[7] = time.monotonic_ns()
        words[1] = self._sequence

    @property
    def phase(self) -> Phase:
        return Phase(self._values[0])


def last_phase(path: Path) -> Phase | None:
    """In which phase a process that has ended was last; None where it never came to life."""
    beat = read(path)
    if beat is not None:
        return beat.phase
    return Phase.LOAD if path.exists() else None  # it died within a beat


def read(path: Path) -> Beat | None:
    """The page's content, or None where there is none yet."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        for _ in range(_READ_TRIES):
            raw, after = os.pread(descriptor, _LAYOUT.size, 0), os.pread(descriptor, _UNTIL_SEQUENCE, 0)
            if not raw.startswith(_MAGIC):
                return None
            _, sequence, phase, *counts = _LAYOUT.unpack(raw)
            # Even, and the same after the rest was read: nobody wrote meanwhile.
            if sequence % 2 == 0 and raw[:_UNTIL_SEQUENCE] == after:
                return Beat(Phase(phase), *counts)
    finally:
        os.close(descriptor)
    return None
