"""A lack of room is known by what the disk has said, however often that was wrapped."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.core import files, room
from tests.helpers_disk import disk_with


def wrapped(inner: BaseException) -> BaseException:
    try:
        try:
            raise inner
        except BaseException as error:
            raise RuntimeError("unexpected pos 64 vs 0") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "x"), "is full"),
        (OSError(errno.EROFS, "x"), "is read-only"),
        (wrapped(OSError(errno.ENOSPC, "x")), "is full"),
        (wrapped(wrapped(OSError(errno.ENOSPC, "x"))), "is full"),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), "is full"),
        (OSError(errno.EIO, "x"), None),
        (RuntimeError("no room"), None),
        (wrapped(ValueError("x")), None),
    ],
)
def test_what_the_disk_said_is_found_behind_an_error(error: BaseException, said: str | None) -> None:
    assert room.refusal(error) == said


def test_room_is_what_the_disk_says_now(tmp_path: Path) -> None:
    info = os.statvfs(tmp_path)
    assert room.lacking(tmp_path, 1) is None
    assert room.lacking(tmp_path, info.f_blocks * info.f_frsize * 2) == "is full"


def full_amid_a_write(name: str, call: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
    if name == "write":
        os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
        raise OSError(errno.ENOSPC, "full")
    return call()


@pytest.mark.parametrize(
    "act",
    [
        lambda folder: files.write(folder / "x", b"new " * 100),
        lambda folder: files.append_json(folder / "x.jsonl", {"n": 1}),
        lambda folder: files.copy(folder / "source", folder / "copy"),
        lambda folder: _stage(folder / "tree"),
    ],
    ids=["write", "append", "copy", "stage"],
)
def test_what_a_full_disk_cut_off_takes_no_room(act: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"bytes" * 100)
    (tmp_path / "x.jsonl").write_bytes(b'{"n": 0}\n')
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    with disk_with(full_amid_a_write), pytest.raises(OSError, match="full"):
        act(tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def _stage(target: Path) -> None:
    with files.stage(target) as staged:
        (staged / "library").write_bytes(b"written beside the door")
        files.write(staged / "x", b"new " * 100)
