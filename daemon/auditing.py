"""How often each row of a file was trained, and whether it is in the model, from what the worker recorded as trained.

The worker notes the line of each row after the optimizer's step that contains it; the note is part of each checkpoint,
sealed by its manifest. So what a crash undid is not counted, and what is counted is in those weights.
"""

import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from daemon.core import config, files
from daemon.core.attempts import Manifest
from daemon.core.errors import BadData, NotFound
from daemon.core.paths import Workspace
from daemon.core.records import IntakeReport, State
from daemon.data.lines import UnusableFile
from daemon.data.sources import Source
from daemon.jobs import store
from daemon.models import checkpoints


@dataclass(frozen=True)
class AuditedJob:
    """A job that had this content."""

    id: str
    state: str
    in_model: bool  # in the accepted one, that `latest` names
    checkpoint: str | None  # that holds what it trained; None where it left nothing
    rows_trained: int  # each counted as often as it was


@dataclass(frozen=True)
class Span:
    """Rows that follow each other and fared alike."""

    first: int  # line, element or row of the file, as `unit` says
    last: int
    rows: int
    times: int  # trained, in the accepted model
    pending: int  # trained, in a checkpoint of the running job
    reason: str | None  # why not, where intake left them out


@dataclass(frozen=True)
class Audit:
    """What became of a file."""

    file: str
    sha256: str
    unit: str
    rows: int
    jobs: list[AuditedJob]
    spans: list[Span]

    def by_times(self) -> dict[int, int]:
        """How many rows were trained so often."""
        counts: Counter[int] = Counter()
        for span in self.spans:
            counts[span.times] += span.rows
        return dict(sorted(counts.items(), reverse=True))

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "rows_by_times": {str(times): rows for times, rows in self.by_times().items()}}


def audit(workspace: Workspace, given: str) -> Audit:
    """Of a file, wherever a copy of it lies, or of a job's. Raises NotFound, BadData."""
    path = Path(given)
    if not path.is_file():
        path = store.find(workspace, given).data
    sha256 = files.hash_file(path)
    found = [job for job in store.iterate(workspace) if _sha256(job) == sha256]
    if not found:
        raise NotFound(f"No job has had the content of {path.name}.", "training_queue list --all shows them")
    accepted = checkpoints.latest(workspace)
    manifest = checkpoints.read(accepted) if accepted else None
    jobs, times, pending = [], array("I"), array("I")
    for job in found:
        judged, here, later = _of_job(workspace, job, manifest)
        jobs.append(judged)
        _count(times, here)
        _count(pending, later)
    source = Source(path, config.load(workspace.config)[0])
    spans = list(_spans(_rows(source, times, pending, _reasons(found))))
    return Audit(path.name, sha256, source.unit, sum(span.rows for span in spans), jobs, spans)


def _sha256(job: store.Found) -> str | None:
    try:
        report = IntakeReport.load(job.report)
    except ValueError:
        return None
    return report.sha256 if report else None


def _of_job(
    workspace: Workspace, job: store.Found, accepted: Manifest | None
) -> tuple[AuditedJob, "array[int]", "array[int]"]:
    """The job, and the lines of the rows that it trained: in the accepted model, and since then in its training."""
    part, checkpoint = checkpoints.part_of(accepted, job.id), None
    here, later = array("I"), array("I")
    if part.entries:
        here = _read(workspace.run(job.id).consumed)[: part.rows]
    if accepted and accepted.job == job.id:
        checkpoint = f"checkpoint-{accepted.step}"
    newest = checkpoints.learned(workspace, job.id) if job.state is State.PROCESSING else None
    if newest:
        checkpoint, later = newest.name, _read(newest / checkpoints.CONSUMED)[len(here) :]
    judged = AuditedJob(job.id, job.state.value, bool(part.entries), checkpoint, len(here) + len(later))
    return judged, here, later


def _read(note: Path) -> "array[int]":
    lines = array("I")
    try:
        lines.frombytes(note.read_bytes())
    except (OSError, ValueError) as error:
        raise BadData(f"What was trained cannot be read: {error}.", f"bring back {note} from a backup") from error
    if sys.byteorder == "big":
        lines.byteswap()
    return lines


def _count(into: "array[int]", lines: "array[int]") -> None:
    missing = max(lines, default=0) + 1 - len(into)
    into.extend([0] * max(missing, 0))
    for line in lines:
        into[line] += 1


def _reasons(found: list[store.Found]) -> dict[int, str]:
    """Why intake left rows out; of the newest job with this content."""
    refused = files.read_lines(found[-1].folder / store.REJECTED_ROWS)
    return {row["line"]: row["reason"] for row in refused}


def _rows(source: Source, times: "array[int]", pending: "array[int]", reasons: dict[int, str]) -> Iterator[Span]:
    try:
        for line in source:
            number = line.number
            now = times[number] if number < len(times) else 0
            later = pending[number] if number < len(pending) else 0
            yield Span(number, number, 1, now, later, reasons.get(number) if not now + later else None)
    except UnusableFile as unusable:
        raise BadData(f"The file cannot be read to its end: {unusable}.", unusable.remedy) from unusable


def _spans(rows: Iterator[Span]) -> Iterator[Span]:
    """Neighbours that fared alike as one."""
    open_span: Span | None = None
    for row in rows:
        if open_span and (row.times, row.pending, row.reason) == (open_span.times, open_span.pending, open_span.reason):
            open_span = replace(open_span, last=row.last, rows=open_span.rows + 1)
            continue
        if open_span:
            yield open_span
        open_span = row
    if open_span:
        yield open_span


# ---- checkpoints ----


def list_checkpoints(workspace: Workspace) -> list[dict[str, Any]]:
    """Every checkpoint, the oldest first, by what its manifest says; not verified."""
    accepted = checkpoints.latest(workspace)
    return [_shown(folder, checkpoints.read(folder), folder == accepted) for folder in checkpoints.every(workspace)]


def _shown(folder: Path, manifest: Manifest | None, accepted: bool) -> dict[str, Any]:
    facts = {"checkpoint": folder.name, "step": checkpoints.step_of(folder), "accepted": accepted}
    if manifest is None:
        return {**facts, "job": None, "file": None, "final": None, "bytes": None, "created_at": None}
    size = sum(seal.bytes for seal in manifest.files.values())
    file = next((trained.file for trained in manifest.lineage if trained.job == manifest.job), None)
    return {
        **facts,
        "job": manifest.job,
        "file": file,
        "final": manifest.final,
        "bytes": size,
        "created_at": manifest.created_at,
    }


def verify_checkpoints(workspace: Workspace, names: list[str]) -> list[dict[str, Any]]:
    """Every byte of these checkpoints (all, where none is named) against its manifest. Raises NotFound."""
    known = {folder.name: folder for folder in checkpoints.every(workspace)}
    accepted = checkpoints.latest(workspace)
    if accepted:
        known["latest"] = accepted
        known.setdefault(accepted.name, accepted)  # also where its folder is gone
    unknown = [name for name in names if name not in known]
    if unknown:
        raise NotFound(f"There is no checkpoint {unknown[0]}.", "training_models checkpoints shows them")
    chosen = [known[name] for name in names] or [folder for name, folder in known.items() if name != "latest"]
    return [{"checkpoint": folder.name, "damage": checkpoints.damage(folder)} for folder in chosen]
