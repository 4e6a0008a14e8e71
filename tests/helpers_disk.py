"""Disks that die, fail or remember, put in the place of the real one behind the one door of writes."""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from daemon.core import files
from daemon.core.files import Disk

CALLS = [name for name in vars(Disk) if not name.startswith("_")]
MOMENTS = (
    "before",
    "amid",
    "after",
)  # of a call; amid a write half of the bytes are there, amid a rmtree one file less
DIED = 86
MOST_CALLS = 200  # far above what any operation here needs

Call = Callable[[], Any]
Around = Callable[[str, Call, tuple[Any, ...]], Any]


@contextmanager
def disk_with(around: Around) -> Iterator[None]:
    """Every call that changes the disk goes through `around(name, the real call, its arguments)`."""
    real, wrapped = files.disk, Disk()
    for name in CALLS:
        method = getattr(real, name)
        setattr(wrapped, name, lambda *a, _n=name, _m=method: around(_n, lambda: _m(*a), a))
    files.disk = wrapped
    try:
        yield
    finally:
        files.disk = real


def without_waiting() -> AbstractContextManager[None]:
    """Let fsync return at once: the death of a process cannot show what it did; a `Recorder` sees its calls."""
    return disk_with(lambda name, call, _: None if name in ("fsync", "syncfs") else call())


def halfway(name: str, arguments: tuple[Any, ...]) -> None:
    """As much of a call as a crash in its middle can leave; nothing, where the kernel does it whole or not at all."""
    if name == "write":
        os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
    elif name == "rmtree":
        for path in sorted(f for f in arguments[0].rglob("*") if not f.is_dir())[:1]:
            path.unlink()


def dies(operation: Call, number: int, moment: str) -> bool:
    """Run an operation in a process that ends itself at the n-th call to the disk; whether it came as far as that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside the thread of the test's own time limit
        child = os.fork()
    if child == 0:
        _die_at(operation, number, moment)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, DIED), f"the operation failed by itself: exit code {code}"
    return code == DIED


def _die_at(operation: Call, number: int, moment: str) -> None:
    calls = 0

    def around(name: str, call: Call, arguments: tuple[Any, ...]) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and moment != "after":
            if moment == "amid":
                halfway(name, arguments)
            os._exit(DIED)
        result = call()
        if calls == number:
            os._exit(DIED)
        return result

    try:
        with without_waiting(), disk_with(around):
            operation()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


def every_death(make: Callable[[str], Call]) -> Iterator[str]:
    """Die at each call in turn. `make(name)` prepares a fresh case and gives its operation; yields after each death.

    The names of the cases say where they died: `3-after`.
    """
    for moment in MOMENTS:
        for number in range(1, MOST_CALLS):
            name = f"{number}-{moment}"
            if not dies(make(name), number, moment):
                assert number > 1, "an operation that never changes the disk proves nothing"
                break
            yield name


def every_failure(
    make: Callable[[str], Call], passed_over: frozenset[str] = frozenset(), told_later: str | None = None
) -> Iterator[str]:
    """Let each call in turn fail with EIO and with ENOSPC, the latter after half of a write; yields after each.

    The error has to reach the caller, but from the calls `passed_over`, whose failure has another way round, and but
    for a lack of room for the file of the name `told_later`, which waits for some.
    """
    for code in (errno.EIO, errno.ENOSPC):
        for number in range(1, MOST_CALLS):
            name = f"{number}-{errno.errorcode[code]}"
            failed = _fail_at(make(name), number, code)
            if failed is None:
                assert number > 1
                break
            call, place, error = failed
            waits = code == errno.ENOSPC and place == told_later
            told = error is not None and error.errno == code
            assert call in passed_over or waits or told, f"{name}: {call} failed silently"
            yield name


def _fail_at(operation: Call, number: int, code: int) -> tuple[str, str | None, OSError | None] | None:
    """The call that failed, the name of its file or folder, and what the caller was told."""
    calls, failed, place = 0, "", None

    def around(name: str, call: Call, arguments: tuple[Any, ...]) -> Any:
        nonlocal calls, failed, place
        calls += 1
        if calls != number:
            return call()
        failed, place = name, _name_of(arguments[0])
        if code == errno.ENOSPC:
            halfway(name, arguments)
        raise OSError(code, os.strerror(code), "a disk made to fail")

    try:
        with without_waiting(), disk_with(around):
            operation()
    except OSError as error:
        return failed, place, error
    return (failed, place, None) if failed else None


def _name_of(argument: Any) -> str | None:
    if isinstance(argument, int):
        argument = os.readlink(f"/proc/self/fd/{argument}")
    return Path(argument).name


class Recorder:
    """Knows which files and folders an operation has changed and not synced, and what it renamed nevertheless."""

    def __init__(self, root: Path) -> None:
        self.faults: list[str] = []
        self._clean = {_inode(f) for f in (root, *root.rglob("*"))}  # all that was there before is on the disk
        self._root = root

    @property
    def unsynced(self) -> list[Path]:
        """What a loss of power could still take."""
        return [f for f in (self._root, *self._root.rglob("*")) if not f.is_symlink() and not self._synced(f)]

    def around(self, name: str, call: Call, arguments: tuple[Any, ...]) -> Any:
        if name == "rename" and not arguments[0].is_symlink():
            below = [arguments[0], *arguments[0].rglob("*")]
            self.faults += [f"renamed unsynced: {f}" for f in below if not self._synced(f)]
        new = name != "open" or not os.path.lexists(arguments[0])
        self._forget(name, arguments)
        result = call()
        match name:
            case "fsync":
                self._clean.add(_number(os.fstat(arguments[0])))
            case "write":
                self._clean.discard(_number(os.fstat(arguments[0])))
            case "clone":
                self._clean.discard(_number(os.fstat(arguments[1])))
            case _ if new:
                self._clean -= {_inode(a.parent) for a in arguments if isinstance(a, Path)}
        return result

    def _forget(self, name: str, arguments: tuple[Any, ...]) -> None:
        """The number of what is deleted or replaced may soon be that of something new."""
        path = {"unlink": 0, "rmtree": 0, "rename": 1}.get(name)
        if path is not None and os.path.lexists(arguments[path]):
            below = [] if arguments[path].is_symlink() else arguments[path].rglob("*")
            doomed = [arguments[path], *below]
            self._clean -= {_inode(f) for f in doomed if f.is_dir() or f.lstat().st_nlink == 1}

    def _synced(self, path: Path) -> bool:
        """An empty folder is no more than its name, which its parent has to keep."""
        return path.is_symlink() or _inode(path) in self._clean or (path.is_dir() and not os.listdir(path))


def _number(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _inode(path: Path) -> tuple[int, int]:
    return _number(path.lstat())


def recorded(root: Path, operation: Call) -> Recorder:
    """What an operation did to the disk, seen by one who trusts only what was synced."""
    recorder = Recorder(root)
    with disk_with(recorder.around):
        operation()
    return recorder
