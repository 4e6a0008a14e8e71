"""The read side of every face: what the disk says now, corrected for what is no longer true."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from daemon.core import files, locks, room, tails
from daemon.core.errors import NotFound
from daemon.core.paths import Workspace
from daemon.core.records import ENDED_STATES, WAITING_STATES, Desired, IntakeReport, Job, State, now
from daemon.jobs import ledger, order, store
from daemon.jobs.inbox import dropped
from daemon.jobs.store import printable

FOLLOW_SECONDS = 0.2
SILENT_SECONDS = 20.0  # twice the time after which a daemon with nothing to do says so again
SHOWN_REJECTED_ROWS = 20
NOT_RUNNING = "daemon not running"

# Every key that training_status.json promises; unknown is null, never missing.
STATUS_KEYS = (
    *("schema_version", "status", "reason", "pid", "boot_id", "daemon_started_at", "updated_at", "stale_after_seconds"),
    *("model_name", "model_version", "training_method", "job"),
    *("current_step", "total_steps", "job_step", "job_total_steps", "epoch", "progress_percent", "eta_seconds"),
    *("loss", "validation_loss", "val_train_gap", "gap_rating", "accuracy_percent", "think_tag_percent"),
    *("learning_rate", "grad_norm", "tokens_per_second", "steps_per_second", "skipped_updates", "generation_timeouts"),
    *("current_example", "recent_examples", "queue", "exactness", "inexact", "accepted_step", "last_checkpoint"),
    *("resources", "components", "alerts", "error"),
)
# True only while somebody trains and somebody watches.
LIVE_KEYS = ("pid", "eta_seconds", "tokens_per_second", "steps_per_second", "resources", "components")


# ---- status ----


def status(workspace: Workspace) -> dict[str, Any]:
    """training_status.json, corrected, and what it cannot know: who runs, how old it is."""
    written = _read(workspace.status) or {}
    shown = {**dict.fromkeys(STATUS_KEYS), "schema_version": 1, **written, "queue": store.counts(workspace)}
    running = daemon_runs(workspace)
    age = age_seconds(shown["updated_at"])
    if not running:
        shown |= {**dict.fromkeys(LIVE_KEYS), "status": "stopped", "reason": NOT_RUNNING}
    elif not written or _written_by_another(workspace, shown["pid"]):
        shown |= {**dict.fromkeys(LIVE_KEYS), "status": "starting", "reason": None}
    working = locks.is_locked(workspace.worker_lock)
    if running and (error := _disk_error(workspace, age)):
        waits = {} if working or shown["reason"] == "user" else {"status": "paused", "reason": "disk"}
        shown |= {"error": error, **waits}
    return shown | {
        "daemon_running": running,
        "worker_running": working,
        "stale": age is not None and age > (shown["stale_after_seconds"] or 0),
        "age_seconds": age,
        "last_seen": shown["updated_at"],
    }


def daemon_runs(workspace: Workspace) -> bool:
    """Whether a daemon holds this workspace now; known by its lock, never by a number."""
    return locks.is_locked(workspace.daemon_lock)


def _disk_error(workspace: Workspace, age: float | None) -> dict[str, Any] | None:
    """What the daemon cannot write, since the disk takes nothing: that it takes nothing."""
    said = room.lacking(workspace.root)
    # The reader's view may be read-only where the daemon's is not; then the daemon goes on writing.
    if said is None or (said == room.READ_ONLY and (age or 0) < SILENT_SECONDS):
        return None
    message = f"the disk of {workspace.root} {said}"
    return {"class": "disk", "message": message, "remedy": room.REMEDY, "at": now(), "job": None}


def _written_by_another(workspace: Workspace, pid: int | None) -> bool:
    """Whether the status is the last word of an earlier daemon, which the present one has not replaced yet."""
    holder = (locks.lock_holder(workspace.daemon_lock) or {}).get("pid")
    return None not in (holder, pid) and holder != pid


def age_seconds(written_at: str | None) -> float | None:
    """Seconds since a time as records write it."""
    if written_at is None:
        return None
    return round((datetime.now(UTC) - datetime.fromisoformat(written_at)).total_seconds(), 3)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return files.read_json(path)
    except ValueError:
        return None  # a damaged file says nothing; a face shows the rest


# ---- the queue ----


def queue(workspace: Workspace, everything: bool = False, limit: int | None = None) -> list[dict[str, Any]]:
    """The job in training, then what waits in its order, at most `limit`; with `everything` also what has ended."""
    blocker = _blocker(workspace)
    # In this order, a job that starts meanwhile is seen twice rather than never.
    waiting = list(islice(store.iterate(workspace, *WAITING_STATES), limit))
    training = store.jobs(workspace, State.PROCESSING)
    busy = len(training)
    rows = [_row(found) | _asks(workspace, found.id) for found in training]
    started = {found.id for found in training}
    before, time = busy, now()
    for position, found in enumerate((f for f in waiting if f.id not in started), start=1):
        standing = order.standing(workspace, found, time)
        ready = standing.kind == "ready"
        waits_for = blocker or (standing.words if not ready else f"{before} before it" if before else "next")
        before += ready  # one that is held back lets the others pass
        rows.append(_row(found) | {"position": position, "waits_for": waits_for})
    if everything:
        rows += [_row(found) for found in islice(store.iterate(workspace, *ENDED_STATES), limit)]
    return rows


def _asks(workspace: Workspace, job_id: str) -> dict[str, Any]:
    return {"waits_for": "approval"} if question(workspace, job_id) else {}


def count(workspace: Workspace, everything: bool = False) -> int:
    """How many rows `queue` has without a limit; no file is opened."""
    states = tuple(State) if everything else (*WAITING_STATES, State.PROCESSING)
    return sum(number for state, number in store.counts(workspace).items() if state in states)


def _blocker(workspace: Workspace) -> str | None:
    """Why nothing starts at all, or None."""
    if not daemon_runs(workspace):
        return NOT_RUNNING
    desired = _desired(workspace)
    if desired.paused:
        return f"paused ({desired.reason or 'user'})"
    return "the daemon is stopping" if desired.stop else None


def _desired(workspace: Workspace) -> Desired:
    try:
        return Desired.load(workspace.desired) or Desired()
    except ValueError:
        return Desired()


def _row(found: store.Found) -> dict[str, Any]:
    report = _report(found)
    return {
        "position": None,
        "id": found.id,
        "priority": found.job.priority,
        "state": found.state.value,
        "file": found.job.file,
        "label": found.job.label,
        "rows": report.rows if report else None,
        "bad_rows": report.bad_rows if report else None,
        "too_long_rows": report.too_long_rows if report else None,
        "steps": report.estimated_steps if report else None,
        "waits_for": None,
        "age_seconds": age_seconds(found.job.taken_in_at),
        "reason": found.job.reason,
        "remedy": found.job.remedy,
    }


def _report(found: store.Found) -> IntakeReport | None:
    try:
        return IntakeReport.load(found.report)
    except ValueError:
        return None


def inbox(workspace: Workspace) -> list[str]:
    """The files that are dropped and not taken in yet; sidecars are part of their file."""
    return [item.path.name for item in dropped(workspace)]


# ---- one job ----


def job(workspace: Workspace, text: str) -> dict[str, Any]:
    """All that is known of the job with this id, beginning of an id, or file name."""
    found = store.find(workspace, find(workspace, text))
    run = workspace.run(found.id)
    left = {"report": run.report, "results": run.results, "curves": run.root / "curves.png"}
    return {
        **_row(found),
        "folder": str(found.folder.relative_to(workspace.root)),
        "record": found.job.model_dump(mode="json"),
        "report": _read(found.report),
        "rejected_rows": tails.first_lines(found.folder / store.REJECTED_ROWS, SHOWN_REJECTED_ROWS),
        "run": {
            "folder": str(run.root.relative_to(workspace.root)),
            "last_line": tails.last_line(run.log),
            "attempts": _attempts(workspace, found.id),
            "verdict": _read(run.verdict),
            "question": question(workspace, found.id) if found.state is State.PROCESSING else None,
            **{name: _there(workspace, path) for name, path in left.items()},
        },
    }


def _there(workspace: Workspace, path: Path) -> str | None:
    """A file's place in the workspace; None where it is not there (yet)."""
    return str(path.relative_to(workspace.root)) if path.is_file() else None


def _attempts(workspace: Workspace, job_id: str) -> list[dict[str, Any]]:
    run = workspace.run(job_id)
    newest = run.newest_attempt()
    attempts = [run.attempt(number) for number in range(1, (newest.number if newest else 0) + 1)]
    return [
        {"number": attempt.number, "outcome": _read(attempt.outcome), "exit": _read(attempt.exit)}
        for attempt in attempts
        if attempt.root.is_dir()
    ]


def find(workspace: Workspace, text: str) -> str:
    """The id of the job that is meant."""
    try:
        return store.find(workspace, text).id
    except NotFound:
        # A job that moved while the folders were read one by one is found at the second look.
        return store.find(workspace, text).id


def question(workspace: Workspace, job_id: str) -> dict[str, Any] | None:
    """What the gate asks a person about this job, as long as it is not answered."""
    run = workspace.run(job_id)
    asked, newest = _read(run.question), run.newest_attempt()
    open_ = asked is not None and asked["answer"] is None and newest is not None
    return asked if asked and open_ and newest and asked["automatic"]["attempt"] == newest.number else None


def in_training(workspace: Workspace) -> str | None:
    """The id of the job that is being trained."""
    found = store.processing(workspace)
    return found.id if found else None


def job_ids(workspace: Workspace) -> set[str]:
    """The ids of all jobs; names only, no file is opened."""
    folders = [workspace.state(state) for state in State]
    return {f.name for folder in folders if folder.is_dir() for f in folder.iterdir() if not f.name.startswith(".")}


def has_ended(workspace: Workspace, job_id: str) -> State | None:
    """The state in which the job has ended, or None while it waits or trains."""
    return next((state for state in ENDED_STATES if (workspace.state(state) / job_id).is_dir()), None)


def taken_in(workspace: Workspace, name: str, known: set[str]) -> dict[str, Any] | None:
    """The job made of the file with this name, if it is none of those known before."""
    new = job_ids(workspace) - known
    rows = (queue(workspace) if new else []) + [row for job_id in new if (row := _ended_row(workspace, job_id))]
    return next((row for row in rows if row["id"] in new and row["file"] == printable(name)), None)


def is_judged(workspace: Workspace, row: dict[str, Any]) -> bool:
    """Whether a job that was taken in stays where it is: a report may be there before the job is moved to failed."""
    state = State(row["state"])
    if state not in WAITING_STATES:
        return True
    found = store.look(workspace, state, row["id"])
    report = _report(found) if found else None
    if found is None or report is None or not report.usable:
        return False
    return found.job.again or ledger.trained_as(workspace, report.sha256) is None


def _ended_row(workspace: Workspace, job_id: str) -> dict[str, Any] | None:
    state = has_ended(workspace, job_id)
    record = Job.load(workspace.state(state) / job_id / store.RECORD) if state else None
    return _row(store.Found(state, workspace.state(state) / job_id, record)) if state and record else None


# ---- the log of a run ----


def log_lines(workspace: Workspace, job_id: str) -> list[dict[str, Any]]:
    """The lines of log.jsonl so far; empty before the first step."""
    return files.read_lines(workspace.run(job_id).log)


def follow_log(workspace: Workspace, job_id: str) -> Iterator[dict[str, Any]]:
    """The lines so far and those to come, until the job has ended."""
    position = 0
    while True:
        # Looked at before reading: lines written until then are still shown.
        ended = has_ended(workspace, job_id) is not None
        lines, position = tails.new_lines(workspace.run(job_id).log, position)
        yield from lines
        if ended:
            return
        time.sleep(FOLLOW_SECONDS)
