"""A ledger that is missing or damaged is made anew from the model's lineage and the folders of jobs and runs, aloud."""

from datetime import UTC, datetime

from daemon.core import files
from daemon.core.attempts import Manifest, Trained
from daemon.core.paths import Workspace
from daemon.core.records import ENDED_STATES, IntakeReport, LedgerLine, State, Verdict
from daemon.jobs import ledger, store
from daemon.jobs.store import Found
from daemon.models import checkpoints
from daemon.service.context import Context


def look_after_ledger(context: Context) -> None:
    """At a daemon's start: what cannot be read must not be forgotten, or the same file would be trained twice."""
    workspace = context.workspace
    ledger.cut_torn_end(workspace)
    wrong = ledger.damage(workspace)
    lines = rebuilt(workspace) if wrong else []
    if wrong is None or (not lines and not workspace.ledger.exists()):
        return
    kept = ""
    if workspace.ledger.exists():
        beside = workspace.ledger.with_name(f"ledger.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.jsonl")
        files.move(workspace.ledger, beside)
        kept = f"; the damaged one is kept as runs/{beside.name}"
    files.write(workspace.ledger, "".join(line.model_dump_json() + "\n" for line in lines))
    words = f"runs/ledger.jsonl {wrong}; it is made anew from the manifests and folders, with {len(lines)} lines{kept}"
    context.tracker.event("ledger_rebuilt", words)


def rebuilt(workspace: Workspace) -> list[LedgerLine]:
    """One line a job that has ended, the oldest first; those that the model contains in the order of its lineage."""
    manifest = _model(workspace)
    ended = {found.id: found for found in store.jobs(workspace, *ENDED_STATES) if found.job.moved_at}
    inside = _in_model(workspace, manifest, ended)
    outside = [_ended(workspace, found) for found in ended.values() if found.id not in {line.job for line in inside}]
    order = sorted([*inside, *outside], key=lambda line: (line.at, line.job))
    by_lineage, jobs = iter(inside), {line.job for line in inside}
    return [next(by_lineage) if line.job in jobs else line for line in order]


def _model(workspace: Workspace) -> Manifest | None:
    """The manifest of the accepted model; where `latest` leads to none, of the newest that no job is training."""
    accepted = checkpoints.latest(workspace)
    manifest = checkpoints.read(accepted) if accepted else None
    training = store.names(workspace, State.PROCESSING)
    others = (checkpoints.read(folder) for folder in reversed(checkpoints.every(workspace)))
    return manifest or next((other for other in others if other and other.job not in training), None)


def _in_model(workspace: Workspace, manifest: Manifest | None, ended: dict[str, Found]) -> list[LedgerLine]:
    """The lines of the jobs that the model contains, each where the lineage names it last."""
    lines: dict[str, LedgerLine] = {}
    step = 0
    for entry in manifest.lineage if manifest else []:
        step += entry.steps
        lines.pop(entry.job, None)
        line = _contained(workspace, manifest, entry, step, ended.get(entry.job))
        if line is not None:
            lines[entry.job] = line
    return list(lines.values())


def _contained(
    workspace: Workspace, manifest: Manifest | None, entry: Trained, step: int, found: Found | None
) -> LedgerLine | None:
    waiting = found is None and any(entry.job in store.names(workspace, s) for s in set(State) - set(ENDED_STATES))
    if waiting and manifest and manifest.job == entry.job and manifest.final:
        return None  # accepted a moment ago: it is completed, and recorded, next
    outcome = found.state if found else State.SKIPPED if waiting else State.COMPLETED
    name, verdict = workspace.checkpoint(step).name, _verdict(workspace, entry.job)
    if verdict and outcome is not State.REJECTED and verdict.checkpoint != name:
        verdict = None
    at = found.job.moved_at if found else None
    line = LedgerLine(
        job=entry.job,
        file=entry.file,
        sha256=entry.sha256,
        rows=entry.rows,
        steps=checkpoints.part_of(manifest, entry.job).steps,
        outcome=outcome.value,
        reason=found.job.reason if found else None,
        checkpoint=name,
        validation_loss=verdict.validation_loss if verdict else None,
        holdout_key=verdict.holdout_key if verdict else None,
        at=at or (manifest.created_at if manifest else ""),
    )
    return line.model_copy(update=_counted(found)) if found else line


def _ended(workspace: Workspace, found: Found) -> LedgerLine:
    """The line of a job of which the model contains nothing."""
    report, verdict = _report(found), _verdict(workspace, found.id) if found.state is State.REJECTED else None
    lost = found.state is State.COMPLETED
    line = LedgerLine(
        job=found.id,
        file=found.job.file,
        sha256=report.sha256 if report else None,
        rows=report.rows if report else 0,
        steps=0,
        outcome=ledger.UNDONE if lost else found.state.value,
        reason="no model contains it" if lost else found.job.reason,
        checkpoint=None,
        validation_loss=verdict.validation_loss if verdict else None,
        holdout_key=verdict.holdout_key if verdict else None,
        at=found.job.moved_at or "",
    )
    return line.model_copy(update=_counted(found))


def _counted(found: Found) -> dict[str, int | None]:
    report = _report(found)
    return {"bad_rows": report.bad_rows, "too_long_rows": report.too_long_rows} if report else {}


def _report(found: Found) -> IntakeReport | None:
    try:
        return IntakeReport.load(found.report)
    except ValueError:
        return None


def _verdict(workspace: Workspace, job: str) -> Verdict | None:
    try:
        return Verdict.load(workspace.run(job).verdict)
    except ValueError:
        return None
