"""Processes of intake that read batches of a large file side by side; what they find comes back in the file's order."""

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from daemon.core.errors import BadConfig, Exit
from daemon.data.lines import BadRow, Line
from daemon.data.reading import Read, Reader, Reading

MAX_PROCESSES = 4
LARGE_FILE_BYTES = 1 << 20  # below, starting processes takes longer than it saves
_PR_SET_PDEATHSIG = 1

Flat = tuple[tuple[Any, ...], tuple[Any, ...] | BadRow]


def processes_for(file_bytes: int) -> int:
    """How many processes shall read a file; one is intake itself."""
    return min(len(os.sched_getaffinity(0)), MAX_PROCESSES) if file_bytes > LARGE_FILE_BYTES else 1


def read_all(reader: Reader, batches: Iterable[Sequence[Line]], processes: int) -> Iterator[list[Read]]:
    """What the reader says of every batch, in order. Raises BadConfig."""
    if processes == 1:
        yield from map(reader.read, batches)
        return
    crew = [_Member(reader) for _ in range(processes)]
    try:
        yield from _in_turn(crew, iter(batches))
    finally:
        for member in crew:
            member.end()


def _in_turn(crew: list["_Member"], batches: Iterator[Sequence[Line]]) -> Iterator[list[Read]]:
    """Each has one batch at a time, so that none ever waits for one who waits for it."""
    busy: deque[_Member] = deque()
    for member in crew:
        if (batch := next(batches, None)) is not None:
            member.give(batch)
            busy.append(member)
    while busy:
        batch = next(batches, None)  # read while they work
        member = busy.popleft()
        found = member.take()
        if batch is not None:
            member.give(batch)
            busy.append(member)
        yield found


class _Member:
    """One process. It is forked, so that the model's tokenizer is in memory once."""

    def __init__(self, reader: Reader) -> None:
        self._pipe, far_end = multiprocessing.Pipe()
        fork = multiprocessing.get_context("fork")
        self._process: BaseProcess = fork.Process(target=_work, args=(reader, far_end, os.getpid()), daemon=True)
        self._process.start()
        far_end.close()

    def give(self, batch: Sequence[Line]) -> None:
        try:
            self._pipe.send([tuple(line) for line in batch])
        except OSError:
            raise self._gone() from None

    def take(self) -> list[Read]:
        try:
            found = self._pipe.recv()
        except (EOFError, OSError):
            raise self._gone() from None
        if isinstance(found, tuple):
            raise BadConfig(*found)
        assert isinstance(found, list)
        return [_whole(*flat) for flat in found]

    def _gone(self) -> RuntimeError:
        """Of the crash of one process, intake's own comes: it is counted by who started intake."""
        self._process.join()
        return RuntimeError(f"a process that reads rows ended with exit code {self._process.exitcode}")

    def end(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _work(reader: Reader, pipe: Connection, parent: int) -> None:
    die_with(parent)
    while True:
        try:
            batch = [Line._make(line) for line in pipe.recv()]
        except EOFError:
            return
        try:
            pipe.send([_flat(*found) for found in reader.read(batch)])
        except BadConfig as error:
            pipe.send((error.message, error.remedy))


def _flat(line: Line, found: Reading | BadRow) -> Flat:
    """For the pipe: plain tuples take a tenth of the time of named ones."""
    return tuple(line), found if isinstance(found, BadRow) else tuple(found)


def _whole(line: tuple[Any, ...], found: tuple[Any, ...] | BadRow) -> Read:
    return Line._make(line), found if isinstance(found, BadRow) else Reading._make(found)


def die_with(parent: int) -> None:
    """Who works for a process that is gone would work for nobody, or beside its successor."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(Exit.PROBLEM)
