"""Settled files become jobs: record first, data second, then the one rename that makes the job visible."""

import errno
import fcntl
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import yaml
from pydantic import ValidationError

from daemon.core import files
from daemon.core.config import check_column_map
from daemon.core.errors import BadConfig, BadData
from daemon.core.paths import Workspace
from daemon.core.records import Job, Priority, Sidecar, State, now
from daemon.data.sources import kind_of_file
from daemon.jobs import order, store

UNFINISHED_SUFFIXES = (".part", ".tmp", ".crdownload", ".swp")
SIDECAR_SUFFIXES = (".yaml", ".yml")
WITHOUT_LEASES_SECONDS = 10.0  # at rest, where the filesystem cannot tell whether somebody still writes
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,120}")
_OWN_NAMES = (store.RECORD, store.REPORT, store.REJECTED_ROWS, store.TOKENS, store.DIGESTS, "sidecar.yaml")


@dataclass(frozen=True)
class Dropped:
    """A file that somebody dropped, and the priority that its place gives it (None = the sidecar's or normal)."""

    path: Path
    priority: Priority | None


def dropped(workspace: Workspace) -> list[Dropped]:
    """What lies in the inbox and, as single files, in the queue's waiting folders; sidecars beside data excepted."""
    places: list[tuple[Path, Priority | None]] = [(workspace.inbox, None)]
    places += [(workspace.queue / name, name) for name in get_args(Priority)]
    found = []
    for folder, priority in places:
        for path in _entries(folder):
            mine = folder == workspace.inbox or not path.is_dir() or path.is_symlink()
            if mine and not _ignored(path):
                found.append(Dropped(path, priority))
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
    except FileNotFoundError:
        return []


def _ignored(path: Path) -> bool:
    name = path.name.lower()
    return name.startswith(".") or name.endswith(UNFINISHED_SUFFIXES) or name.endswith(SIDECAR_SUFFIXES)


def unusable(path: Path) -> str | None:
    """Why something in the inbox is not even a file; such things stay where they are and are reported once."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_ISLNK: "a link", stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((words for test, words in kinds.items() if test(mode)), "a device")


class Settling:
    """Remembers since when each file is at rest, by a clock that cannot be set back."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, int, float]] = {}

    def settled(self, path: Path, settle_seconds: float) -> bool:
        """Whether nobody writes the file any more and it has been at rest long enough."""
        try:
            info = path.lstat()
        except FileNotFoundError:
            self._seen.pop(path, None)
            return False
        size, changed, since = self._seen.get(path, (-1, -1, 0.0))
        if (size, changed) != (info.st_size, info.st_mtime_ns):
            since = time.monotonic()
            self._seen[path] = (info.st_size, info.st_mtime_ns, since)
        # A file moved into place is older than its arrival here; its own age counts as rest.
        rest = max(time.monotonic() - since, time.time() - info.st_mtime)
        writer = being_written(path)
        needed = settle_seconds if writer is not None else max(settle_seconds, WITHOUT_LEASES_SECONDS)
        if writer or rest < needed:
            return False
        self._seen.pop(path, None)
        return True


def being_written(path: Path) -> bool | None:
    """Whether a process has the file open for writing, asked by a read lease; None where leases are not to be had."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False
    except OSError as error:
        return True if error.errno in (errno.EAGAIN, errno.EACCES) and os.geteuid() == _owner(descriptor) else None
    finally:
        os.close(descriptor)


def _owner(descriptor: int) -> int:
    return os.fstat(descriptor).st_uid


def take_in(workspace: Workspace, item: Dropped) -> store.Found:
    """Make a waiting job of a settled file. A crash in between is finished by `finish_taking_in`.

    Raises BadData where the file's sidecar cannot be understood: the file then goes to failed with that reason.
    """
    sidecar, trouble = _sidecar(item.path)
    job = Job(
        id=store.new_id(workspace, printable(item.path.name)),
        file=printable(item.path.name),
        data=_data_name(item.path),
        bytes=item.path.stat().st_size,
        priority=item.priority or sidecar.priority,
        label=sidecar.label,
        epochs=sidecar.epochs,
        learning_rate=sidecar.learning_rate,
        column_map=sidecar.column_map,
        after=sidecar.after,
        not_before=sidecar.not_before,
        again=sidecar.again,
        taken_in_at=now(),
        reason=trouble.message if trouble else None,
        remedy=trouble.remedy if trouble else None,
    )
    job = pin_after(workspace, job)
    folder = workspace.queue / f".{job.id}"
    files.make_folder(folder)
    job.save(folder / store.RECORD)
    files.move(item.path, folder / job.data)
    for beside in sidecar_paths(item.path):
        files.move(beside, folder / "sidecar.yaml")
    return _make_visible(workspace, folder, job)


def pin_after(workspace: Workspace, job: Job) -> Job:
    """The job with the id of the one that it waits for, so that a later file of that name changes nothing."""
    earlier = order.find_after(workspace, job) if job.after else None
    return job.model_copy(update={"after": earlier[1]}) if earlier else job


def _data_name(path: Path) -> str:
    """The file's own name where it is harmless; else one with its ending, which says how it is read."""
    if _safe(path.name):
        return path.name
    ending = kind_of_file(path.name) or path.suffix
    return f"data{ending}" if _safe(f"x{ending}") else "data"


def _make_visible(workspace: Workspace, folder: Path, job: Job) -> store.Found:
    state = State.FAILED if job.reason else State(job.priority)
    target = workspace.state(state) / job.id
    files.move(folder, target)
    return store.Found(state, target, job)


def finish_taking_in(workspace: Workspace) -> list[store.Found]:
    """After a crash: jobs that have their data become visible; folders without data go, their file is still outside."""
    finished = []
    for folder in sorted(f for f in workspace.queue.glob(".*") if f.is_dir()):
        try:
            job = Job.load(folder / store.RECORD)
        except ValueError:
            job = None
        if job and (folder / job.data).is_file():
            finished.append(_make_visible(workspace, folder, job))
        elif not any(f.name != store.RECORD and not f.name.startswith(".") for f in folder.iterdir()):
            files.remove(folder)
    return finished


def sidecar_paths(path: Path) -> list[Path]:
    return [beside for suffix in SIDECAR_SUFFIXES if (beside := path.with_suffix(suffix)).is_file()][:1]


def _sidecar(path: Path) -> tuple[Sidecar, BadData | None]:
    for beside in sidecar_paths(path):
        try:
            return read_sidecar(beside), None
        except BadData as trouble:
            return Sidecar(), trouble
    return Sidecar(), None


def read_sidecar(beside: Path) -> Sidecar:
    """The settings beside a data file. Raises BadData."""
    name = printable(beside.name)
    try:
        sidecar = Sidecar.model_validate(yaml.safe_load(beside.read_text()) or {})
        check_column_map(sidecar.column_map or {}, name)
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError, RecursionError) as error:
        known = ", ".join(Sidecar.model_fields)
        raise BadData(
            f"the settings beside the file, {name}, are not understood: {_first(error)}",
            f"drop the file again beside a corrected {name} (known keys: {known})",
        ) from None
    except BadConfig as error:
        raise BadData(error.message, f"{error.remedy}; drop the file again beside a corrected {name}") from None
    return sidecar


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def printable(name: str) -> str:
    """A file's name that can be shown and stored, whatever bytes it was made of."""
    shown = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def _safe(name: str) -> bool:
    return bool(_SAFE_NAME.fullmatch(name)) and name not in _OWN_NAMES
