"""The one door of deletion: it refuses what must not go, and keeps for a while what people delete."""

import os
from datetime import UTC, datetime
from pathlib import Path

from daemon.core import files
from daemon.core.errors import Refused
from daemon.core.paths import Workspace
from daemon.core.records import now


def discard(workspace: Workspace, path: Path, reason: str) -> Path:
    """Move a file or folder of the workspace into models/trash/, with a note on whence and why; its new place."""
    _refuse_protected(workspace, path)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    grave = workspace.trash / f"{stamp}-{path.name.lstrip('.')}"
    files.make_folder(grave)
    files.write_json(
        grave / "trashed.json", {"from": str(path.relative_to(workspace.root)), "reason": reason, "at": now()}
    )
    files.move(path, grave / path.name)
    return grave


def delete(workspace: Workspace, path: Path) -> None:
    """Delete for good something that a newer copy has superseded."""
    _refuse_protected(workspace, path)
    files.remove(path)


def clear_leftovers(folder: Path) -> None:
    """Delete what crashes left half-made in a folder; nothing under these names was ever whole.

    Only for a folder whose writer is known to be gone: a living one would lose what it is just writing.
    """
    for path in files.leftovers(folder):
        files.remove(path)


def _refuse_protected(workspace: Workspace, path: Path) -> None:
    protected = [workspace.base_models, workspace.latest]
    if workspace.latest.is_symlink():
        protected.append(workspace.current_model / os.readlink(workspace.latest))
    inside = path.is_relative_to(workspace.root) and path != workspace.root
    for keep in protected:
        if not inside or path == keep or keep.is_relative_to(path):
            raise Refused(f"{path} is protected and is not deleted.", "the accepted model and the base model stay")
