"""The holdout of a workspace: the files in data/validation, and where their token cache lies."""

import hashlib
from contextlib import suppress
from pathlib import Path

from daemon.core import files
from daemon.core.config import Settings
from daemon.core.paths import Workspace
from daemon.data import formats, tokens
from daemon.data.lines import BadRow
from daemon.data.sources import Source

CACHE_PREFIX = ".tokens-"


def holdout_files(workspace: Workspace) -> list[Path]:
    """In order of name."""
    return sorted(f for f in workspace.validation.glob("*.jsonl") if f.is_file() and not f.name.startswith("."))


def holdout_key(workspace: Workspace, settings: Settings) -> str | None:
    """Names the content of the holdout and all that decides its tokens; None where there is no holdout.

    In the holdout's `tokens.json` it stands for both `key` and `data_sha256`.
    """
    found = holdout_files(workspace)
    if not found:
        return None
    parts = [tokens.key(workspace.root / settings.base_model, settings), *(files.hash_file(f) for f in found)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def holdout_folder(workspace: Workspace, key: str) -> Path:
    """The folder of the token cache of the holdout with this key; intake makes it."""
    return workspace.validation / f"{CACHE_PREFIX}{key[:16]}"


def holdout_digests(workspace: Workspace, settings: Settings) -> set[bytes]:
    """What the good rows of the holdout say, read from its files; no cache is needed or made."""
    found = set()
    for file in holdout_files(workspace):
        for line in Source(file, settings):
            with suppress(BadRow):
                found.add(formats.read(line.data, settings.column_map).digest)
    return found


def remove_old_caches(workspace: Workspace, keep: Path) -> None:
    """Caches of other holdouts or settings, and what crashes left of them. A worker that has one mapped keeps it."""
    old = {*workspace.validation.glob(f"{CACHE_PREFIX}*"), *files.leftovers(workspace.validation)} - {keep}
    for folder in sorted(old):
        files.remove(folder)
