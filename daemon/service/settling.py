"""Settle what ended: look at the disk, decide, act, record. Every step can be repeated."""

import asyncio
from pathlib import Path
from typing import Any

import yaml

from daemon.core import files, room
from daemon.core.attempts import Assignment, Evaluation, ExitInfo, Manifest, Outcome
from daemon.core.paths import Attempt
from daemon.core.records import IntakeReport, LedgerLine, State, Verdict, now
from daemon.jobs import gate, ledger, store
from daemon.jobs.recovery import Action, Ending, classify, decide
from daemon.jobs.store import Found
from daemon.models import checkpoints, trash
from daemon.service import assigning
from daemon.service.context import Context

FAILED_ENDINGS = (
    Ending.OUT_OF_MEMORY,
    Ending.NOT_FINITE,
    Ending.GPU,
    Ending.BUG,
    Ending.KILLED,
)


async def settle(context: Context) -> None:
    """Bring the job in processing one step on, where something has ended."""
    found = store.processing(context.workspace)
    if context.desired.skip not in (None, found and found.id):
        context.wish(skip=None)  # carried out, and a crash came before this was noted: a retry must not be skipped
    if found is None:
        return
    accepted = _accepted(context, found)
    if accepted is not None:
        complete(context, found, accepted)
        return
    attempt = context.workspace.run(found.id).newest_attempt()
    if attempt is None:
        return
    ended = context.runner.ending(attempt)
    if ended is None:
        return
    if context.desired.skip == found.id:
        skip(context, found)
        return
    verdict = _verdict(context, found, attempt)
    if verdict is None:
        verdict = await _judge(context, found, attempt, *ended)
    if verdict is not None:
        await carry_out(context, found, verdict)


def _accepted(context: Context, found: Found) -> Manifest | None:
    """The manifest of `latest`, if this job is the newest that it contains."""
    folder = checkpoints.latest(context.workspace)
    manifest = checkpoints.read(folder) if folder else None
    return manifest if manifest and manifest.job == found.id else None


def _verdict(context: Context, found: Found, attempt: Attempt) -> Verdict | None:
    try:
        verdict = Verdict.load(context.workspace.run(found.id).verdict)
    except ValueError:
        return None  # damaged: the gate is asked again
    return verdict if verdict and verdict.attempt == attempt.number else None


async def _judge(context: Context, found: Found, attempt: Attempt, ending: Ending, reason: str) -> Verdict | None:
    """Decide on an ended attempt. Returns a verdict where the gate could be asked; else acts and returns None."""
    decision = decide(ending, reason, attempts_without_progress(context, found))
    context.announce_ending(attempt, ending, reason, decision)
    if decision.action is Action.GATE:
        return await _ask_gate(context, found, attempt)
    if decision.action is Action.FAIL:
        fail(context, found, decision.reason, remedy_for(attempt))
    elif decision.action is Action.PAUSE:
        kind, remedy = ("disk", room.REMEDY) if ending is Ending.DISK_FULL else ("config", remedy_for(attempt))
        context.hold("attempt", kind, decision.reason, remedy, found.id)
    return None


async def _ask_gate(context: Context, found: Found, attempt: Attempt) -> Verdict | None:
    outcome = Outcome.load(attempt.outcome)
    evaluation = Evaluation.load(attempt.evaluation)
    assert outcome and outcome.checkpoint and evaluation, "a worker that is done wrote all three"
    folder = context.workspace.current_model / outcome.checkpoint
    wrong = await asyncio.to_thread(checkpoints.damage, folder)
    manifest = checkpoints.read(folder)
    if wrong or manifest is None:
        context.tracker.event("checkpoint_damaged", f"{folder.name} cannot be accepted: {wrong}", job=found.id)
        files.remove(attempt.outcome)  # what it says is no longer so: the attempt counts as lost, and is made again
        return None
    settings = assigning.job_settings(context.workspace, found, context.settings)
    best = ledger.best_loss(context.workspace, evaluation.holdout_key)
    verdict = gate.judge(settings.gate, manifest, folder.name, evaluation, best)
    verdict = verdict.model_copy(update={"attempt": attempt.number})
    verdict.save(context.workspace.run(found.id).verdict)
    return verdict


async def carry_out(context: Context, found: Found, verdict: Verdict) -> None:
    """Accept or reject as the verdict says."""
    folder = context.workspace.current_model / verdict.checkpoint
    if verdict.passed:
        checkpoints.accept(context.workspace, folder)
    context.tracker.event(
        "verdict", f"{found.job.file}: {'accepted' if verdict.passed else 'rejected'}: {verdict.reason}", job=found.id
    )
    if verdict.passed:
        manifest = checkpoints.read(folder)
        assert manifest, "verified before the verdict"
        complete(context, found, manifest)
    else:
        reject(context, found, verdict)


def complete(context: Context, found: Found, manifest: Manifest) -> None:
    """Record a job that `latest` contains, and move it to completed."""
    workspace = context.workspace
    verdict = Verdict.load(workspace.run(found.id).verdict)
    folder = workspace.checkpoint(manifest.step)
    write_results(context, found, manifest, verdict)
    files.write(workspace.run(found.id).consumed, (folder / checkpoints.CONSUMED).read_bytes())
    loss = verdict.validation_loss if verdict else None
    key = verdict.holdout_key if verdict else None
    end(context, found, State.COMPLETED, None, None, folder.name, manifest.job_step, loss, key)
    checkpoints.prune(workspace, context.settings.save_total_limit)


def reject(context: Context, found: Found, verdict: Verdict) -> None:
    """The model stays as it was; the job says which metric spoke against it."""
    checkpoints.discard_of_job(context.workspace, found.id, f"rejected: {verdict.reason}")
    remedy = f"look at runs/{found.id}; train it all the same after a change with: training_queue retry {found.id}"
    end(context, found, State.REJECTED, verdict.reason, remedy, None, 0, verdict.validation_loss, verdict.holdout_key)


def fail(context: Context, found: Found, reason: str, remedy: str | None) -> None:
    """The job cannot be trained; its checkpoints go to the trash, its data stays."""
    checkpoints.discard_of_job(context.workspace, found.id, f"failed: {reason}")
    end(context, found, State.FAILED, reason, remedy or f"when mended: training_queue retry {found.id}")


def skip(context: Context, found: Found) -> None:
    """Leave the model as it was before the job; a retry starts at its first row."""
    checkpoints.discard_of_job(context.workspace, found.id, "skipped")
    end(
        context,
        found,
        State.SKIPPED,
        "skipped by hand",
        f"train it from its first row: training_queue retry {found.id}",
    )
    context.wish(skip=None)


def end(
    context: Context,
    found: Found,
    state: State,
    reason: str | None,
    remedy: str | None,
    checkpoint: str | None = None,
    steps: int = 0,
    loss: float | None = None,
    holdout_key: str | None = None,
) -> None:
    """The ledger first, the move last: after a crash in between all is done again, and no line is written twice."""
    report = _report(found)
    line = LedgerLine(
        job=found.id,
        file=found.job.file,
        sha256=report.sha256 if report else None,
        rows=report.rows if report else 0,
        bad_rows=report.bad_rows if report else None,
        too_long_rows=report.too_long_rows if report else None,
        steps=steps,
        outcome=state.value,
        reason=reason,
        checkpoint=checkpoint,
        validation_loss=loss,
        holdout_key=holdout_key,
        at=now(),
    )
    ledger.record(context.workspace, line)
    context.clear("attempt")
    if state is State.COMPLETED:
        _keep_digests(found)
    for folder in (found.folder, context.workspace.run(found.id).root):
        trash.clear_leftovers(folder)
    files.remove(found.tokens)  # it can be made again from the data, which stays
    store.move(context.workspace, found, state, reason, remedy)
    trained = f" with {report.rows} rows{report.left_out()}" if report and state is State.COMPLETED else ""
    said = f"{found.job.file} is {state.value}{trained}" + (f": {reason}" if reason else "")
    context.tracker.event(state.value, said, job=found.id)


def _report(found: Found) -> IntakeReport | None:
    try:
        return IntakeReport.load(found.report)
    except ValueError:
        return None  # damaged: what is known of the job without it is recorded all the same


def _keep_digests(found: Found) -> None:
    """What each row trained stays with the data, so that later files can be told what of them is known."""
    inside, kept = found.tokens / store.DIGESTS, found.folder / store.DIGESTS
    if inside.is_file() and not kept.exists():
        files.move(inside, kept)


def attempts_without_progress(context: Context, found: Found) -> int:
    """How many failed attempts began where the newest one began: none of them left a newer checkpoint."""
    run = context.workspace.run(found.id)
    newest = run.newest_attempt()
    if newest is None:
        return 0
    beginnings = [Assignment.load(run.attempt(n).assignment) for n in range(1, newest.number + 1)]
    made = next(
        iter(checkpoints.of_job(context.workspace, found.id, beginnings[-1].parent if beginnings[-1] else None)), None
    )
    last = beginnings[-1].resume if beginnings[-1] else None
    if made is not None and str(made.relative_to(context.workspace.root)) != last:
        return 0
    count = 0
    for number in range(newest.number, 0, -1):
        beginning = beginnings[number - 1]
        if beginning is None or beginning.resume != last:
            break
        count += _failed(run.attempt(number))
    return count


def _failed(attempt: Attempt) -> bool:
    ending, _ = classify(Outcome.load(attempt.outcome), ExitInfo.load(attempt.exit), attempt.heartbeat.exists())
    return ending in FAILED_ENDINGS


def remedy_for(attempt: Attempt) -> str | None:
    outcome = Outcome.load(attempt.outcome)
    return outcome.remedy if outcome else None


def write_results(context: Context, found: Found, manifest: Manifest, verdict: Verdict | None) -> None:
    """results.yaml: what the training left, for people and for later comparison."""
    run, report = context.workspace.run(found.id), _report(found)
    facts: dict[str, Any] = {
        "experiment": found.id,
        "method": manifest.method,
        "model": assigning.job_settings(context.workspace, found, context.settings).model_name,
        "base_version": manifest.parent.checkpoint if manifest.parent else "base",
        "files": [{"file": t.file, "rows": t.rows, "epochs": t.epochs, "steps": t.steps} for t in manifest.lineage],
        "total_steps": manifest.step,
        "job_steps": manifest.job_step,
        "rows": {
            "trained": report.rows if report else None,
            "bad": report.bad_rows if report else None,
            "too_long": report.too_long_rows if report else None,
            "in_holdout": report.holdout_rows if report else None,
        },
        "training_time_hours": round(training_seconds(run.log) / 3600, 6),
        "metrics": {"holdout": {"loss": verdict.validation_loss if verdict else None}},
        "baselines": {"previous_version": {"loss": verdict.accepted_loss if verdict else None}},
        "gate": {"mode": verdict.mode, "passed": verdict.passed, "reason": verdict.reason} if verdict else None,
        "checkpoint": f"current_model/checkpoint-{manifest.step}",
    }
    files.write(run.results, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))


def training_seconds(log: Path) -> float:
    """Seconds in which updates were made, summed over the attempts, from the speeds in the log."""
    seconds, steps_before = 0.0, 0
    for line in files.read_lines(log):
        if line["kind"] == "log" and line["job_step"] > steps_before and line["steps_per_second"]:
            seconds += (line["job_step"] - steps_before) / line["steps_per_second"]
            steps_before = line["job_step"]
    return seconds
