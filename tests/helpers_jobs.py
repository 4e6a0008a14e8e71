"""A workspace of folders, and jobs in it, for tests that need no model."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from daemon.core import files
from daemon.core.attempts import CheckpointName, Manifest
from daemon.core.paths import Workspace
from daemon.core.records import Job, LedgerLine, State, now
from daemon.jobs import store
from daemon.jobs.store import Found
from daemon.models import checkpoints

DATA = b'{"text": "one"}\n{"text": "two"}\n'


def make_workspace(root: Path) -> Workspace:
    workspace = Workspace.at(root)
    for folder in workspace.folders():
        files.make_folder(folder)
    settings = {"model_name": "small", "base_model": "models/base/small", "settle_seconds": 0.2}
    workspace.config.write_text(json.dumps(settings))
    return workspace


def put_job(workspace: Workspace, state: State, file: str = "x.jsonl", **facts: Any) -> Found:
    """A job in this state, with its data and a token cache."""
    job = Job(id=store.new_id(workspace, file), file=file, data="data.jsonl", bytes=len(DATA), taken_in_at=now())
    job = job.model_copy(update=facts)
    folder = workspace.state(state) / job.id
    (folder / store.TOKENS).mkdir(parents=True)
    (folder / store.TOKENS / "tokens.bin").write_bytes(bytes(64))
    (folder / job.data).write_bytes(DATA)
    (folder / store.REPORT).write_text(json.dumps({"sha256": "b" * 64, "rows": 2}))
    job.save(folder / store.RECORD)
    return Found(state, folder, job)


def put_checkpoint(
    workspace: Workspace, step: int, job: str = "j", parent: CheckpointName | None = None, **facts: Any
) -> Path:
    """A sealed checkpoint with four small files."""
    folder = workspace.checkpoint(step)
    (folder / "adapter").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "adapter/weights.bin", checkpoints.CONSUMED):
        (folder / name).write_bytes(f"{name} of step {step}".encode() * 20)
    manifest = Manifest.model_validate(MANIFEST | {"job": job, "step": step, "parent": parent} | facts)
    manifest.model_copy(update={"files": checkpoints.seal_files(folder)}).save(folder / checkpoints.MANIFEST)
    return folder


MANIFEST: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "Manifest.json").read_text())


def ledger_line(**facts: Any) -> LedgerLine:
    line = json.loads((Path(__file__).parent / "golden" / "LedgerLine.json").read_text())
    return LedgerLine.model_validate(line | facts)


def copies_of_data(workspace: Workspace, data: bytes = DATA) -> int:
    """How many files of the workspace hold these bytes."""
    files_found = (f for f in workspace.root.rglob("*") if f.is_file() and not f.is_symlink())
    return Counter(f.read_bytes() for f in files_found)[data]


def states_of(workspace: Workspace, job: str) -> list[State]:
    """In which states a job's folder lies; a job is always in exactly one."""
    return [state for state in State if (workspace.state(state) / job).exists()]
