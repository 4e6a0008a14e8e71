"""The heartbeat page: a small memory-mapped file that the training thread advances and the daemon reads.

It is a counter of progress, not of time: a thread that merely lives does not advance it.
"""

import mmap
import os
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

PAGE_BYTES = 4096
_MAGIC = b"TDBEAT1\0"
# magic, sequence (odd while writing), phase, job step, micro-batches, tokens, bytes saved, monotonic nanoseconds
_LAYOUT = struct.Struct("<8s7Q")
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
        path.write_bytes(bytes(PAGE_BYTES))
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._page = mmap.mmap(descriptor, PAGE_BYTES)
        os.close(descriptor)
        self._sequence = 0
        self._values = [int(Phase.LOAD), 0, 0, 0, 0]
        self.beat()

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
        _LAYOUT.pack_into(self._page, 0, _MAGIC, self._sequence - 1, *values, time.monotonic_ns())
        struct.pack_into("<Q", self._page, 8, self._sequence)

    @property
    def phase(self) -> Phase:
        return Phase(self._values[0])


def read(path: Path) -> Beat | None:
    """The page's content, or None where there is none yet."""
    for _ in range(_READ_TRIES):
        try:
            raw = path.read_bytes()[: _LAYOUT.size]
        except FileNotFoundError:
            return None
        if len(raw) < _LAYOUT.size or not raw.startswith(_MAGIC):
            return None
        _, sequence, phase, *counts = _LAYOUT.unpack(raw)
        if sequence % 2 == 0:
            return Beat(Phase(phase), *counts)
    return None
