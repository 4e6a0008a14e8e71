"""Checkpoints as transactions: sealed by a manifest, verified before use, accepted by swapping `latest`."""

import errno
import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from daemon.core import files
from daemon.core.attempts import CheckpointName, FileSeal, Manifest, Trained
from daemon.core.paths import Workspace
from daemon.models import trash

MANIFEST = "manifest.json"
CONSUMED = "consumed.bin"  # uint32, little endian: the line of each row that this job has trained, in order
CONSUMED_BYTES = 4
LOST_BYTES = (errno.EIO, errno.EBADMSG, errno.EUCLEAN)  # what disks and filesystems say of data that is gone
_NAME = re.compile(r"checkpoint-(\d+)")


def seal_files(folder: Path) -> dict[str, FileSeal]:
    """Size and sha256 of every file below `folder`, the manifest itself excepted."""
    found = sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / MANIFEST)
    return {str(f.relative_to(folder)): FileSeal(bytes=f.stat().st_size, sha256=files.hash_file(f)) for f in found}


def read(folder: Path) -> Manifest | None:
    """The manifest of a checkpoint; None where it has none or the manifest is damaged."""
    try:
        return Manifest.load(folder / MANIFEST)
    except ValueError:
        return None
    except OSError as error:
        if error.errno in LOST_BYTES:
            return None
        raise


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None where every file is as it was written.

    Raises OSError where it could not be looked at for a reason that is not its own: no rights, too many open files.
    """
    try:
        return _damage(folder)
    except OSError as error:
        if error.errno not in LOST_BYTES:
            raise
        return f"a file of it cannot be read: {error.strerror}"


def _damage(folder: Path) -> str | None:
    manifest = read(folder)
    if manifest is None:
        return "its manifest is missing or damaged"
    for name, seal in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != seal.bytes:
            return f"{name} has {path.stat().st_size} bytes instead of {seal.bytes}"
        if files.hash_file(path) != seal.sha256:
            return f"{name} has changed since it was saved"
    return None


def name_of(folder: Path) -> CheckpointName:
    """A checkpoint's name with the hash of its manifest, which seals the rest."""
    return CheckpointName(checkpoint=folder.name, manifest_sha256=files.hash_file(folder / MANIFEST))


def every(workspace: Workspace) -> list[Path]:
    """All checkpoint folders, by step; whole or not."""
    if not workspace.current_model.is_dir():
        return []
    found = [(int(m[1]), f) for f in workspace.current_model.iterdir() if (m := _NAME.fullmatch(f.name))]
    return [folder for _, folder in sorted(found)]


def latest(workspace: Workspace) -> Path | None:
    """The accepted checkpoint; None before the first, and where `latest` is no link (any more)."""
    try:
        return workspace.current_model / os.readlink(workspace.latest)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return None
        raise


def accept(workspace: Workspace, folder: Path) -> None:
    """The commit point of a job: `latest` names this checkpoint from one instant to the next."""
    if workspace.latest.is_dir() and not workspace.latest.is_symlink():  # no rename replaces it, and it is not ours
        files.move(workspace.latest, workspace.latest.with_name(f"latest.{time.time_ns()}"))
    files.swap_link(workspace.latest, folder.name)


def of_job(workspace: Workspace, job: str, parent: CheckpointName | None) -> list[Path]:
    """The checkpoints that a job made upon this parent, newest first; not verified."""
    found = [(f, read(f)) for f in reversed(every(workspace))]
    return [f for f, manifest in found if manifest and manifest.job == job and manifest.parent == parent]


def parent_of(accepted: Path | None, job: str) -> CheckpointName | None:
    """Upon which model a job is trained: the accepted one; where that holds a kept part of the job, that part's own."""
    manifest = read(accepted) if accepted else None
    if manifest and manifest.job == job and not manifest.final:
        return manifest.parent
    return name_of(accepted) if accepted else None


def learned(workspace: Workspace, job: str) -> Path | None:
    """The newest checkpoint of a job that the accepted model does not contain; not verified."""
    accepted = latest(workspace)
    newest = next(iter(of_job(workspace, job, parent_of(accepted, job))), None)
    return newest if newest and (accepted is None or step_of(newest) > step_of(accepted)) else None


def resume_point(workspace: Workspace, job: str, parent: CheckpointName | None) -> tuple[Path | None, list[str]]:
    """The newest verified checkpoint of a job upon its parent, and what was set aside on the way, in words."""
    problems: list[str] = []
    for folder in of_job(workspace, job, parent):
        wrong = damage(folder)
        if wrong is None:
            return folder, problems
        problems.append(f"{folder.name} cannot be used: {wrong}; set aside in models/trash")
        trash.discard(workspace, folder, f"damaged: {wrong}")
    return None, problems


def clear_the_way(workspace: Workspace, resume: Path | None) -> list[str]:
    """Set aside every checkpoint above the point from which training goes on; none of them is in its lineage."""
    start = resume or latest(workspace)
    above = [f for f in every(workspace) if start is None or step_of(f) > step_of(start)]
    for folder in above:
        trash.discard(workspace, folder, "not in the lineage of the accepted model")
    return [f.name for f in above]


def discard_of_job(workspace: Workspace, job: str, reason: str) -> list[str]:
    """Move a job's checkpoints to the trash, except those that the accepted model is or grew from."""
    accepted = latest(workspace)
    above = [f for f in every(workspace) if accepted is None or step_of(f) > step_of(accepted)]
    mine = [f for f in above if (m := read(f)) and m.job == job]
    for folder in mine:
        trash.discard(workspace, folder, reason)
    return [f.name for f in mine]


def prune(workspace: Workspace, keep: int) -> list[str]:
    """Delete the checkpoints superseded by `keep` newer ones. By step, never by the clock.

    `latest` stays, and the accepted one before it: there is something to go back to where a disk loses bytes.
    """
    accepted = latest(workspace)
    manifest = read(accepted) if accepted else None
    before = manifest.parent.checkpoint if manifest and manifest.parent else None
    superseded = [f for f in every(workspace)[:-keep] if f != accepted and f.name != before]
    for folder in superseded:
        trash.delete(workspace, folder)
    return [f.name for f in superseded]


@dataclass(frozen=True)
class Part:
    """As much of a job as a model contains, by its lineage."""

    entries: tuple[Trained, ...] = ()

    @property
    def steps(self) -> int:
        return sum(entry.steps for entry in self.entries)

    @property
    def rows(self) -> int | None:
        """Each counted as often as it was trained; None where an earlier release did not write it down."""
        counts = [entry.rows_trained for entry in self.entries]
        return None if None in counts else sum(count or 0 for count in counts)


def part_of(manifest: Manifest | None, job: str) -> Part:
    """What the model of this manifest contains of a job."""
    return Part(tuple(entry for entry in manifest.lineage if entry.job == job)) if manifest else Part()


def part_in_model(workspace: Workspace, job: str) -> Part:
    """What the accepted model contains of a job."""
    accepted = latest(workspace)
    return part_of(read(accepted) if accepted else None, job)


def lineage_digest(parts: dict[str, str]) -> str:
    """One sha256 over named parts, in a fixed order."""
    return hashlib.sha256("\n".join(f"{k}={parts[k]}" for k in sorted(parts)).encode()).hexdigest()


def step_of(folder: Path) -> int:
    """The global step in a checkpoint's name."""
    match = _NAME.fullmatch(folder.name)
    assert match
    return int(match[1])
