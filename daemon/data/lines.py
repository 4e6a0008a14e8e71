"""The lines of a data file: read in flat memory, however long they are, and parsed as strict JSON."""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from daemon.core.files import CHUNK

SHOWN_CHARACTERS = 200
FORGET_BYTES = 8 << 20
BOM = b"\xef\xbb\xbf"
_NUL_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class BadRow(Exception):  # it is about the user's row, one of many: collected, never fatal
    """Why a row cannot be trained, and what to do about it, both in words."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process and back; some kinds are made without words."""
        return _again, (type(self), self.reason, self.fix)


def _again(kind: type[BadRow], reason: str, fix: str) -> BadRow:
    bad = kind.__new__(kind)
    BadRow.__init__(bad, reason, fix)
    return bad


class Unreadable(BadRow):
    """The line is no JSON at all; a last line that was cut off looks like this."""


class UnusableFile(Exception):  # caught by who reads a file, and written into its report
    """Why a file cannot be read (any further), and what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class Line(NamedTuple):  # there are millions, and they go between processes
    """One row as it stands in a file. `data` is cut off where it is longer than a row may be."""

    number: int  # from 1
    data: bytes
    too_long: bool
    ended: bool  # by a newline; only a file's last line can lack it
    trouble: BadRow | None = None  # why there is no row to be had from it

    @property
    def shown(self) -> str:
        """The beginning of the line, for people."""
        return self.data[: 4 * SHOWN_CHARACTERS].decode(errors="replace")[:SHOWN_CHARACTERS].rstrip("\r\n")


class Stream(Protocol):
    """What the readers of rows need of a file, packed or not."""

    def read(self, size: int = ..., /) -> bytes: ...

    def readline(self, size: int = ..., /) -> bytes: ...

    def peek(self, size: int = ..., /) -> bytes: ...


class HashedFile(io.RawIOBase):
    """A file that counts and hashes what is read of it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._hash = hashlib.sha256()
        self.bytes = self._forgotten = 0

    @property
    def sha256(self) -> str:
        """Of what was read so far."""
        return self._hash.hexdigest()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        count = self._file.readinto(buffer)
        self._hash.update(memoryview(buffer)[:count])
        self.bytes += count
        if self.bytes - self._forgotten >= FORGET_BYTES:  # read once, it needs no memory that others could use
            os.posix_fadvise(self._file.fileno(), self._forgotten, FORGET_BYTES, os.POSIX_FADV_DONTNEED)
            self._forgotten += FORGET_BYTES
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class LineReader:
    """The lines of a file in one pass, which also gives its size and hash."""

    def __init__(self, path: Path, max_row_bytes: int) -> None:
        self._path = path
        self._limit = max_row_bytes
        self.bytes = 0
        self.sha256 = hashlib.sha256().hexdigest()

    def __iter__(self) -> Iterator[Line]:
        with HashedFile(self._path) as file:
            yield from split_lines(io.BufferedReader(file, CHUNK), self._limit)
            self.bytes, self.sha256 = file.bytes, file.sha256


def split_lines(stream: Stream, max_row_bytes: int) -> Iterator[Line]:
    """The lines that are not blank."""
    for number, data, too_long, ended in _read_lines(stream, max_row_bytes):
        if too_long or not data.isspace():
            yield Line(number, data, too_long, ended)


def physical_lines(stream: Stream, max_row_bytes: int) -> Iterator[Line]:
    """Every line, blank ones too."""
    for line in _read_lines(stream, max_row_bytes):
        yield Line(*line)


def _read_lines(stream: Stream, max_row_bytes: int) -> Iterator[tuple[int, bytes, bool, bool]]:
    """Number, bytes, whether it is over the limit (then it is read to its end and not kept), whether it was ended.

    Plain values: a file may be millions of line ends, and making an object of each takes a minute.
    """
    number = 0
    while data := stream.readline(max_row_bytes + 1):
        number += 1
        ended = data.endswith(b"\n")
        too_long = len(data) > max_row_bytes and not ended
        while too_long and not ended and (rest := stream.readline(CHUNK)):
            ended = rest.endswith(b"\n")
        if number == 1:
            data = data.removeprefix(BOM)
        if data:
            yield number, data, too_long, ended


def parse(line: bytes) -> dict[str, Any]:
    """The object in one line of strict JSON: no NaN, no lone surrogate, no NUL, no key twice. Raises BadRow."""
    if b"\0" in line:
        raise BadRow("the line contains NUL bytes", "the file is damaged or not text; make it again as UTF-8 text")
    try:
        value = orjson.loads(line)
        again = orjson.dumps(value)
    except orjson.JSONDecodeError as error:
        raise _not_json(line, error) from None
    except TypeError:  # what orjson says of more than 254 levels
        raise BadRow("the row is nested too deeply", "flatten it") from None
    if not isinstance(value, dict):
        raise BadRow(f"the line is JSON, but {kind_of(value)}, not an object", 'each line has to be one {"…": …}')
    if b"\\u0000" in again and _NUL_ESCAPE.search(again):
        raise BadRow("the text contains NUL characters", "remove \\u0000 from the text")
    # A parser keeps only the last of two equal keys. Then fewer quotes come out than went in, unless some were
    # written as \u0022: only such rows need the slow look.
    if line.count(b'"') != again.count(b'"') or b"\\u0022" in line:
        json.loads(line, object_pairs_hook=_refuse_twins)
    return value


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        twin = next(key for key in keys if keys.count(key) > 1)
        raise BadRow(f"the key {twin!r} stands twice in one object", "remove or rename one of the two")
    return dict(pairs)


def _not_json(line: bytes, error: orjson.JSONDecodeError) -> BadRow:
    try:
        line.decode()
    except UnicodeDecodeError as bad:
        return Unreadable(f"not valid UTF-8 at byte {bad.start + 1} of the line", "save the file as UTF-8")
    if "depth" in error.msg or "recursion" in error.msg:
        return BadRow("the row is nested too deeply", "flatten it")
    return Unreadable(
        f"not valid JSON at character {error.pos + 1}: {error.msg}", "each line has to be one JSON object"
    )


def kind_of(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names[type(value)]
