"""The rows of a JSON file, an array or an object with one array in it, cut out one by one in flat memory.

A parser that builds values cannot be stopped inside one that is too long. This looks at brackets and quotes only: each
row then goes, as the bytes that stand in the file, through the same strict parser as a line of JSON Lines.
"""

import re
from collections.abc import Iterator

import orjson

from daemon.core.files import CHUNK
from daemon.data import formats
from daemon.data.lines import BOM, Line, Stream, UnusableFile

_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')
_MAX_DEPTH = 1 << 20  # of brackets; a file of nothing else would be followed for minutes
_SHAPE = "write it as [{…}, {…}], or as JSON Lines into a file named .jsonl"


def holds_lines(stream: Stream) -> bool:
    """Whether a file named .json is JSON Lines all the same: an object in its first line, and more after it."""
    head = stream.peek(CHUNK).removeprefix(BOM).lstrip()
    first, newline, rest = head.partition(b"\n")
    try:
        row = orjson.loads(first)
    except orjson.JSONDecodeError:
        return False
    return isinstance(row, dict) and (bool(newline and rest.strip()) or formats.is_known(row))


def read_elements(stream: Stream, max_row_bytes: int) -> Iterator[Line]:
    """The elements of the array, numbered from 1. Raises UnusableFile."""
    splitter = _Splitter(max_row_bytes)
    while chunk := stream.read(CHUNK):
        yield from splitter.feed(chunk)
    splitter.finish()


class _Splitter:
    """Follows the nesting through the chunks of a file."""

    def __init__(self, max_row_bytes: int) -> None:
        self._limit = max_row_bytes
        self._row = bytearray()
        self._too_long = False
        self._number = 0
        self._depth = 0
        self._home = 0  # the depth at which rows are elements; 0 = nothing but white space was seen
        self._arrays = 0
        self._collecting = False  # inside the array of rows
        self._in_string = False
        self._escaped = False

    def feed(self, chunk: bytes) -> Iterator[Line]:
        if not self._home:
            chunk = self._begin(chunk)
        start = 0  # of what is not kept yet
        position = 0
        while position < len(chunk):
            if self._in_string:
                position = self._pass_string(chunk, position)
                continue
            found = _OUTSIDE.search(chunk, position)
            if found is None:
                break
            position = found.end()
            was_collecting = self._collecting
            if self._step(found[0]):
                self._keep(chunk[start : position - 1])
                yield from self._take(last=found[0] != b",")
                start = position
            elif self._collecting and not was_collecting:
                start = position
        if self._collecting:
            self._keep(chunk[start:])

    def _begin(self, chunk: bytes) -> bytes:
        chunk = chunk.removeprefix(BOM).lstrip()
        if chunk:
            if chunk[:1] not in (b"[", b"{"):
                raise UnusableFile("the file holds neither a JSON array nor an object", _SHAPE)
            self._home = 1 if chunk[:1] == b"[" else 2
        return chunk

    def _pass_string(self, chunk: bytes, position: int) -> int:
        if self._escaped:
            self._escaped = False
            return position + 1
        found = _INSIDE.search(chunk, position)
        if found is None:
            return len(chunk)
        self._in_string = found[0] != b'"'
        self._escaped = found[0] == b"\\"
        return found.end()

    def _step(self, mark: bytes) -> bool:
        """Follow one mark; whether an element of the array ends with it."""
        if mark == b'"':
            self._in_string = True
        elif mark == b",":
            return self._collecting and self._depth == self._home
        elif mark in b"[{":
            self._open(mark)
        else:
            self._depth -= 1
            if self._depth < 0:
                raise UnusableFile("a bracket is closed that was never opened", _SHAPE)
            if self._collecting and self._depth < self._home:
                self._collecting = False
                return True
        return False

    def _open(self, mark: bytes) -> None:
        if self._depth == 0 and (self._arrays or self._number):
            raise UnusableFile("there is more after the end of the JSON", _SHAPE)
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UnusableFile(f"element {self._number + 1} is nested too deeply", _SHAPE)
        if mark == b"[" and self._depth == self._home and not self._collecting:
            self._arrays += 1
            if self._arrays > 1:
                raise UnusableFile("the object holds more than one list, and only one can be the rows", _SHAPE)
            self._collecting = True

    def _keep(self, part: bytes) -> None:
        room = self._limit + 1 - len(self._row)
        self._row += part[:room]
        self._too_long = self._too_long or len(self._row) > self._limit

    def _take(self, last: bool) -> Iterator[Line]:
        data, too_long = bytes(self._row), self._too_long
        self._row, self._too_long = bytearray(), False
        if data.strip() or not last:
            self._number += 1
            yield Line(self._number, data, too_long, True)

    def finish(self) -> None:
        if self._depth > 0 or self._in_string:
            raise UnusableFile(
                f"the file is not whole: it ends inside element {self._number + 1}", "copy the file again, whole"
            )
        if self._home == 2 and not self._arrays:
            raise UnusableFile("the object holds no list of rows", _SHAPE)
