"""The only door to the disk: write beside, fsync, rename, fsync the folder; stage; append; hash.

What it does not cover: files of other programs outside the workspace are only read here, never changed.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from daemon.core import room

CHUNK = 1 << 20
STAGE_PREFIX = ".stage-"
TEMPORARY_SUFFIX = ".tmp"
_LIBC = ctypes.CDLL(None, use_errno=True)
_FICLONE = 0x40049409  # ioctl of linux/fs.h: share the blocks of another file


class Disk:
    """The calls that change a disk, one method each, so that a test can die before or after any of them."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, 0o644)

    def write(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def syncfs(self, descriptor: int) -> None:
        if _LIBC.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def symlink(self, target: str, path: Path) -> None:
        os.symlink(target, path)

    def mkdir(self, path: Path) -> None:
        os.mkdir(path)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def rmtree(self, path: Path) -> None:
        shutil.rmtree(path)

    def clone(self, source: int, target: int) -> None:
        fcntl.ioctl(target, _FICLONE, source)


disk = Disk()


# ---- writing ----


def write(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data`, whole or not at all, durably."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    descriptor = disk.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with _taken_back(temporary):
        try:
            disk.write(descriptor, data.encode() if isinstance(data, str) else data)
            disk.fsync(descriptor)
        finally:
            os.close(descriptor)
        disk.rename(temporary, path)
    sync_folder(path.parent)


@contextmanager
def _taken_back(path: Path) -> Iterator[None]:
    """Half of a file or folder must not keep the room whose lack has ended it."""
    try:
        yield
    except Exception as error:
        if room.refusal(error):
            with suppress(OSError):
                disk.rmtree(path) if path.is_dir() else disk.unlink(path)
        raise


def write_json(path: Path, value: BaseModel | dict[str, Any]) -> None:
    """Replace `path` by a record, as strict JSON that people can read."""
    write(path, json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def append_json(path: Path, value: BaseModel | dict[str, Any], *, durable: bool = True) -> None:
    """Add one line of strict JSON. A line cut off by an earlier crash is ended first, so it spoils nothing else."""
    line = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False) + "\n"
    descriptor = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = "\n" + line
        try:
            disk.write(descriptor, line.encode())
        except OSError:
            with suppress(OSError):  # what then stays is ended by the next line
                disk.truncate(descriptor, size)
            raise
        if durable:
            disk.fsync(descriptor)
    finally:
        os.close(descriptor)
    if not size:
        sync_folder(path.parent)


def _plain(value: BaseModel | dict[str, Any]) -> Any:
    """A record as JSON knows it; a number that is not finite becomes null, which is: unknown."""
    return json.loads(value.model_dump_json()) if isinstance(value, BaseModel) else value


def make_folder(path: Path) -> None:
    """The folder and those above it, durably; no error where it is there already."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        disk.mkdir(path)
    except FileExistsError:
        return
    sync_folder(path.parent)


def move(source: Path, target: Path) -> None:
    """One rename within the filesystem, durable on both sides. Refuses to replace anything."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "already there", str(target))
    disk.rename(source, target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def place(source: Path, target: Path) -> None:
    """Like `move` for a single file, atomic against other writers that want the same name (FileExistsError)."""
    disk.link(source, target)
    disk.unlink(source)
    sync_folder(target.parent)


def swap_link(link: Path, target: str) -> None:
    """Let the symbolic link `link` name `target`; a reader sees the old target or the new one, never none."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    if os.path.lexists(temporary):
        disk.unlink(temporary)
    disk.symlink(target, temporary)
    disk.rename(temporary, link)
    sync_folder(link.parent)


@contextmanager
def stage(target: Path) -> Iterator[Path]:
    """A folder to write into. On leaving, all in it is synced and it becomes `target` by one rename.

    After an error it is left behind under its stage name: `leftovers` finds it, nothing reads it.
    """
    folder = target.with_name(f"{STAGE_PREFIX}{target.name}")
    if folder.exists():
        disk.rmtree(folder)
    disk.mkdir(folder)
    with _taken_back(folder):
        yield folder
        for inner, _, names in os.walk(folder, topdown=False):
            for name in names:
                sync_file(Path(inner) / name)
            sync_folder(Path(inner))
    move(folder, target)


def copy(source: Path, target: Path) -> None:
    """A durable copy of one file, sharing blocks where the filesystem can (reflink)."""
    with source.open("rb") as original:
        descriptor = disk.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with _taken_back(target):
            try:
                try:
                    disk.clone(original.fileno(), descriptor)
                except OSError:
                    while chunk := original.read(CHUNK):
                        disk.write(descriptor, chunk)
                disk.fsync(descriptor)
            finally:
                os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, link or tree; no error where it is gone. Callers: the door of deletion, and owners of caches."""
    # A crash half-way must not leave a tree that still looks whole under its own name; the next removal ends it.
    doomed = path if _left_over(path.name) else path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    if path.is_symlink() or path.is_file():
        disk.unlink(path)
    elif path.is_dir() or doomed.is_dir():
        if doomed.is_dir() and doomed != path:
            disk.rmtree(doomed)
        if path.is_dir():
            if doomed != path:
                disk.rename(path, doomed)
                sync_folder(path.parent)  # else a loss of power could undo the rename, and not what is deleted next
            disk.rmtree(doomed)
    else:
        return
    sync_folder(path.parent)


def leftovers(folder: Path) -> list[Path]:
    """What crashes left in `folder`: staged folders, temporary files, half-deleted trees."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if _left_over(path.name)]


def _left_over(name: str) -> bool:
    return name.startswith(STAGE_PREFIX) or (name.startswith(".") and name.endswith(TEMPORARY_SUFFIX))


def sync_file(path: Path) -> None:
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_filesystem(path: Path) -> None:
    """Make all that can be read on the filesystem of `path` durable, whoever wrote it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        disk.syncfs(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        disk.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- reading ----


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`; None where there is no file. Raises ValueError where it is not JSON."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}, not an object")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a JSONL file; a line cut off by a crash is passed over. Empty where there is no file."""
    try:
        with path.open("rb") as lines:
            return [value for line in lines if (value := parse_line(line)) is not None]
    except FileNotFoundError:
        return []


def parse_line(line: bytes) -> dict[str, Any] | None:
    """One line of a JSONL file as an object, or None where it was cut off."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def hash_file(path: Path) -> str:
    """sha256 of the content, in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
