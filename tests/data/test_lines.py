"""Lines are read whole or cut at the limit, numbered, and hashed on the way."""

import hashlib
from pathlib import Path

from daemon.data.lines import LineReader

LIMIT = 20


def test_lines_are_numbered_as_in_an_editor_and_blank_ones_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n  \r\ntwo\nthree")
    reader = LineReader(path, LIMIT)
    assert [(line.number, line.shown, line.ended) for line in reader] == [
        (1, "one", True),
        (4, "two", True),
        (5, "three", False),
    ]


def test_a_line_over_the_limit_is_cut_and_the_next_one_found(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * LIMIT + b"\n" + b"b" * (LIMIT + 1) + b"\n" + b"c" * 3_000_000 + b"\nd\n" + b"e" * 99)
    found = [(line.number, line.too_long, len(line.data)) for line in LineReader(path, LIMIT)]
    assert found == [(1, False, 21), (2, True, 21), (3, True, 21), (4, False, 2), (5, True, 21)]


def test_size_and_hash_are_those_of_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a\n" + b"b" * 2_000_000 + b"\n\nc")
    reader = LineReader(path, LIMIT)
    list(reader)
    assert (reader.bytes, reader.sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
