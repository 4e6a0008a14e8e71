"""Settle what ended: look at the disk, decide, act, record. Every step can be repeated."""

import asyncio
import os
from pathlib import Path

from daemon.core import files, room
from daemon.core.attempts import Evaluation, Manifest, Outcome
from daemon.core.paths import Attempt
from daemon.core.records import IntakeReport, LedgerLine, Question, State, Verdict, now
from daemon.jobs import gate, ledger, store
from daemon.jobs.recovery import Action, Ending, decide
from daemon.jobs.store import Found
from daemon.models import checkpoints, trash
from daemon.service import asking, assigning, progress, skipping
from daemon.service.context import Context
from daemon.service.report import write_report
from daemon.service.results import write_results


async def settle(context: Context) -> None:
    """Bring the job in processing one step on, where something has ended."""
    found = store.processing(context.workspace)
    if context.desired.skip not in (None, found and found.id):
        # Carried out, and a crash came before this was noted: a retry must not be skipped.
        context.wish(skip=None, keep=False)
    if found is None:
        return
    accepted = _accepted(context, found)
    if accepted is not None and accepted.final:
        complete(context, found, accepted)
        return
    attempt = context.workspace.run(found.id).newest_attempt()
    if attempt is None:
        return
    ended = context.runner.ending(attempt)
    if ended is None:
        return
    verdict = _verdict(context, found, attempt)
    if accepted is not None and _is_unrecorded(context, accepted, verdict):
        keep(context, found, accepted)  # `latest` has moved, and a crash came before the job did
        return
    verdict = await _decided(context, found, attempt, verdict, *ended)
    if verdict is not None:
        await carry_out(context, found, verdict)


async def _decided(
    context: Context, found: Found, attempt: Attempt, verdict: Verdict | None, ending: Ending, reason: str
) -> Verdict | None:
    """The verdict on an ended attempt, where there is one by now; `verdict`: the one that was written down."""
    dropped = context.desired.skip == found.id and not context.desired.keep
    if verdict is None and not dropped and asking.waits(context, found, attempt):
        return None
    judged = verdict is not None and verdict.kept and context.desired.keep
    if context.desired.skip == found.id and not judged:
        return await _judge_skipped(context, found, attempt, ending, reason)
    return verdict or await _judge(context, found, attempt, ending, reason)


def _accepted(context: Context, found: Found) -> Manifest | None:
    """The manifest of `latest`, if this job is the newest that it contains."""
    folder = checkpoints.latest(context.workspace)
    manifest = checkpoints.read(folder) if folder else None
    return manifest if manifest and manifest.job == found.id else None


def _is_unrecorded(context: Context, accepted: Manifest, verdict: Verdict | None) -> bool:
    """Whether `latest` has just moved to what a skipped job had learned; if not, this is a retry that goes on there."""
    name = context.workspace.checkpoint(accepted.step).name
    judged_now = verdict is not None and verdict.passed and verdict.checkpoint == name
    return judged_now or ledger.accepted(context.workspace).get(accepted.job) != name


def _verdict(context: Context, found: Found, attempt: Attempt) -> Verdict | None:
    try:
        verdict = Verdict.load(context.workspace.run(found.id).verdict)
    except ValueError:
        return None  # damaged: the gate is asked again
    return verdict if verdict and verdict.attempt == attempt.number else None


async def _judge_skipped(
    context: Context, found: Found, attempt: Attempt, ending: Ending, reason: str
) -> Verdict | None:
    """Drop what the job has learned, or have it judged; it may have come to its end meanwhile."""
    learned = checkpoints.learned(context.workspace, found.id) if context.desired.keep else None
    if learned is None:
        skip(context, found)
        return None
    evaluation = skipping.evaluation_of(attempt, learned)
    if ending is Ending.DONE or evaluation is None:
        return await _judge(context, found, attempt, ending, reason)  # the next attempt evaluates what is there
    if asking.must_wait(context, found, attempt) or await _is_damaged(context, found, learned):
        return None
    manifest = checkpoints.read(learned)
    assert manifest, "verified"
    return await _ask(context, found, attempt, manifest, evaluation, kept=not manifest.final)


async def _is_damaged(context: Context, found: Found, folder: Path) -> bool:
    """Whether a checkpoint cannot be accepted; it is set aside then, and the training goes on without it."""
    wrong = await asyncio.to_thread(checkpoints.damage, folder)
    if wrong:
        context.tracker.event("checkpoint_damaged", f"{folder.name} cannot be accepted: {wrong}", job=found.id)
        trash.discard(context.workspace, folder, f"damaged: {wrong}")
    return wrong is not None


async def _judge(context: Context, found: Found, attempt: Attempt, ending: Ending, reason: str) -> Verdict | None:
    """Decide on an ended attempt. Returns a verdict where the gate could be asked; else acts and returns None."""
    decision = decide(ending, reason, progress.tally(context.workspace, found.id))
    context.announce_ending(attempt, ending, reason, decision)
    if decision.action is Action.GATE:
        return await _ask_gate(context, found, attempt)
    if decision.action is Action.FAIL:
        fail(context, found, decision.reason, remedy_for(attempt))
    elif decision.action is Action.PAUSE:
        _hold(context, found, attempt, ending, decision.reason)
    return None


def _hold(context: Context, found: Found, attempt: Attempt, ending: Ending, reason: str) -> None:
    """Let the queue wait until what has stopped an attempt is mended."""
    kind, remedy = "config", remedy_for(attempt)
    if ending is Ending.DISK_FULL:
        kind, remedy = "disk", room.REMEDY
    elif ending is Ending.OTHER_PROTOCOL:
        if attempt not in context.runner.handed:
            return  # what stood between its worker and another daemon says nothing about this one
        kind, remedy = "environment", f"kill -HUP {os.getpid()}  # the daemon executes itself anew"
    context.hold("attempt", kind, reason, remedy, found.id)


async def _ask_gate(context: Context, found: Found, attempt: Attempt) -> Verdict | None:
    if asking.must_wait(context, found, attempt):
        return None
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
    return await _ask(context, found, attempt, manifest, evaluation)


async def _ask(
    context: Context, found: Found, attempt: Attempt, manifest: Manifest, evaluation: Evaluation, *, kept: bool = False
) -> Verdict | None:
    settings = assigning.job_settings(context.workspace, found, context.settings)
    best = ledger.best_loss(context.workspace, evaluation.holdout_key)
    name = context.workspace.checkpoint(manifest.step).name
    manifest = manifest.model_copy(update={"attempt": attempt.number})
    said = gate.judge(settings.gate, manifest, name, evaluation, best, kept=kept)
    if isinstance(said, Question):
        verdict = await asking.ask(context, found, attempt, said, evaluation, manifest)
    else:
        verdict = said
    if verdict is None:
        return None
    verdict.save(context.workspace.run(found.id).verdict)
    return verdict


async def carry_out(context: Context, found: Found, verdict: Verdict) -> None:
    """Accept or reject as the verdict says."""
    folder = context.workspace.current_model / verdict.checkpoint
    context.tracker.event(
        "verdict", f"{found.job.file}: {'accepted' if verdict.passed else 'rejected'}: {verdict.reason}", job=found.id
    )
    if verdict.passed:
        checkpoints.accept(context.workspace, folder)
        context.tracker.event("accepted", f"current_model/latest is {folder.name}", job=found.id)
        manifest = checkpoints.read(folder)
        assert manifest, "verified before the verdict"
        (complete if manifest.final else keep)(context, found, manifest)
    else:
        reject(context, found, verdict)


def complete(context: Context, found: Found, manifest: Manifest) -> None:
    """Record a job that `latest` contains, and move it to completed."""
    _end_in_model(context, found, manifest, State.COMPLETED, None, None)


def keep(context: Context, found: Found, manifest: Manifest) -> None:
    """Record a skipped job of which `latest` contains what it had learned, and move it to skipped."""
    learned = f"{manifest.job_step} of its {manifest.job_total_steps} updates ({manifest.rows_consumed} rows)"
    reason = f"skipped by hand; {learned} are in the model"
    _end_in_model(context, found, manifest, State.SKIPPED, reason, f"train the rest: training_queue retry {found.id}")
    context.wish(skip=None, keep=False)


def _end_in_model(
    context: Context, found: Found, manifest: Manifest, state: State, reason: str | None, remedy: str | None
) -> None:
    verdict = write_results(context, found, manifest, _report(found))
    loss = verdict.validation_loss if verdict else None
    key = verdict.holdout_key if verdict else None
    name = context.workspace.checkpoint(manifest.step).name
    end(context, found, state, reason, remedy, name, manifest.job_step, loss, key)
    checkpoints.prune(context.workspace, context.settings.save_total_limit)


def reject(context: Context, found: Found, verdict: Verdict) -> None:
    """The model stays as it was; the job says which metric spoke against it."""
    manifest = checkpoints.read(context.workspace.current_model / verdict.checkpoint)
    if manifest:  # else a crash came after it was discarded, and the results are written
        write_results(context, found, manifest, _report(found))
    checkpoints.discard_of_job(context.workspace, found.id, f"rejected: {verdict.reason}")
    remedy = f"look at runs/{found.id}; train it all the same after a change with: training_queue retry {found.id}"
    end(context, found, State.REJECTED, verdict.reason, remedy, None, 0, verdict.validation_loss, verdict.holdout_key)


def fail(context: Context, found: Found, reason: str, remedy: str | None) -> None:
    """The job cannot be trained; its checkpoints go to the trash, its data stays."""
    checkpoints.discard_of_job(context.workspace, found.id, f"failed: {reason}")
    end(context, found, State.FAILED, reason, remedy or f"when mended: training_queue retry {found.id}")


def skip(context: Context, found: Found) -> None:
    """Leave the model as it was; a retry starts at the job's first row, or where it was kept before."""
    checkpoints.discard_of_job(context.workspace, found.id, "skipped")
    nothing = "; it had learned nothing that could be kept" if context.desired.keep else ""
    end(context, found, State.SKIPPED, f"skipped by hand{nothing}", f"train it: training_queue retry {found.id}")
    context.wish(skip=None, keep=False)


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
    if checkpoint is None and (part := checkpoints.part_in_model(context.workspace, found.id)).steps:
        checkpoint, steps = ledger.accepted(context.workspace).get(found.id), part.steps
        reason = f"{reason}; {steps} of its updates, kept before, stay in the model"
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
    if found.state is State.PROCESSING:
        context.clear("approval")
        context.judge.call_off()
    if state is State.COMPLETED:
        _keep_digests(found)
    for folder in (found.folder, context.workspace.run(found.id).root):
        trash.clear_leftovers(folder)
    files.remove(found.tokens)  # it can be made again from the data, which stays
    write_report(context.workspace, found, state, reason, remedy, report)
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


def remedy_for(attempt: Attempt) -> str | None:
    outcome = Outcome.load(attempt.outcome)
    return outcome.remedy if outcome else None
