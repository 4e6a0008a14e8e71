"""Settled files become jobs: record first, data second, then the one rename that makes the job visible."""

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from daemon.core import files
from daemon.core.paths import Workspace
from daemon.core.records import WAITING_STATES, Job, Priority, State, now
from daemon.data.sources import kind_of_file
from daemon.jobs import order, store
from daemon.jobs.sidecar import SUFFIXES as SIDECAR_SUFFIXES
from daemon.jobs.sidecar import sidecar_of, sidecar_paths
from daemon.jobs.store import printable

UNFINISHED_SUFFIXES = (".part", ".tmp", ".crdownload", ".swp")
SIDECAR = "sidecar.yaml"  # its name in the job's folder
WITHOUT_LEASES_SECONDS = 10.0  # at rest, where the filesystem cannot tell whether somebody still writes
ABANDONED_SECONDS = 3600.0  # without a byte added: whoever copied here is gone
_HALF_COPY = re.compile(r"\.{1,2}(data|sidecar)\.\d+\.[0-9a-f]{6}\.tmp(\.\d+\.tmp)?")  # as wishes.py names them
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,120}")
_OWN_NAMES = (store.RECORD, store.REPORT, store.REJECTED_ROWS, store.TOKENS, store.DIGESTS, SIDECAR)


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
        # What waits lies here too, perhaps ten thousand folders: a scan knows them without looking at each.
        for entry in _scanned(folder):
            mine = folder == workspace.inbox or not entry.is_dir(follow_symlinks=False)
            if mine and not _ignored(entry.name):
                found.append(Dropped(folder / entry.name, priority))
    return found


def _scanned(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except FileNotFoundError:
        return []


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
    except FileNotFoundError:
        return []


def _ignored(name: str) -> bool:
    name = name.lower()
    return name.startswith(".") or name.endswith(UNFINISHED_SUFFIXES) or name.endswith(SIDECAR_SUFFIXES)


def unusable(path: Path) -> str | None:
    """Why something in the inbox cannot be taken in at all; such things stay where they are and are reported once."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    mode = info.st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_ISLNK: "a link", stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
        return f"{next((words for test, words in kinds.items() if test(mode)), 'a device')}, not a file"
    if info.st_nlink > 1 and not _on_its_way(path, info):
        return "a hard link: the same file has another name, under which it may change; copy it here instead"
    if not os.access(path, os.R_OK, effective_ids=True):
        return "not readable for the daemon; permit it with chmod"
    return None


def _on_its_way(path: Path, info: os.stat_result) -> bool:
    """Whether the other name is that under which `training_queue add` has made the file; a crash may leave it."""
    hidden = path.parent.glob(f".*{files.TEMPORARY_SUFFIX}")
    return info.st_nlink == 2 and any(other.lstat().st_ino == info.st_ino for other in hidden)


def clear_abandoned(workspace: Workspace) -> None:
    """Delete the half copies of an `add` that was killed. Only its own names: what people hide here is theirs."""
    for path in workspace.inbox.glob(".*"):
        with contextlib.suppress(FileNotFoundError):  # a copy that has just got its name
            if _HALF_COPY.fullmatch(path.name) and time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                files.remove(path)


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
    """Make a waiting job of a settled file, a failed one where its settings are not understood.

    A crash in between is finished by `finish_taking_in`. Raises FileNotFoundError where the file is gone.
    """
    sidecar, trouble = sidecar_of(item.path)
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
        files.move(beside, folder / SIDECAR)
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
            _bring_sidecar(workspace, folder, job)
            finished.append(_make_visible(workspace, folder, job))
        elif not any(f.name != store.RECORD and not f.name.startswith(".") for f in folder.iterdir()):
            files.remove(folder)
    return finished


def _bring_sidecar(workspace: Workspace, folder: Path, job: Job) -> None:
    """Settings left behind by a crash between the two moves would be read for the next file of that name."""
    for place in (workspace.inbox, *map(workspace.state, WAITING_STATES)):
        same = [path for path in _entries(place) if printable(path.stem) == Path(job.file).stem]
        if len(same) == 1 and same[0].suffix in SIDECAR_SUFFIXES and not (folder / SIDECAR).exists():
            files.move(same[0], folder / SIDECAR)


def _safe(name: str) -> bool:
    return bool(_SAFE_NAME.fullmatch(name)) and name not in _OWN_NAMES
