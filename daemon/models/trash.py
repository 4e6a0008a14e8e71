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
    path = _allowed(workspace, path)
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
    files.remove(_allowed(workspace, path))


def clear_leftovers(folder: Path) -> None:
    """Delete what crashes left half-made in a folder; nothing under these names was ever whole.

    Only for a folder whose writer is known to be gone: a living one would lose what it is just writing.
    """
    for path in files.leftovers(folder):
        files.remove(path)


def _allowed(workspace: Workspace, path: Path) -> Path:
    """Where `path` really lies; refused where that is outside, or in, on or above what must stay."""
    place = path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()
    protected = [workspace.base_models, workspace.latest]
    if workspace.latest.is_symlink():
        protected.append(workspace.current_model / os.readlink(workspace.latest))
    inside = place.is_relative_to(workspace.root) and place != workspace.root
    for keep in protected:
        if not inside or place.is_relative_to(keep) or keep.is_relative_to(place):
            raise Refused(f"{path} is protected and is not deleted.", "the accepted model and the base model stay")
    return place
