"""What the gate does not decide alone: a judge is asked, or a person; the loop waits for neither."""

from daemon.core.attempts import Case, Evaluation, Manifest
from daemon.core.paths import Attempt, Workspace
from daemon.core.records import Question, Verdict, Wish, now
from daemon.jobs import gate
from daemon.jobs.store import Found, printable
from daemon.models import checkpoints
from daemon.service import assigning
from daemon.service.context import Context

REMEDY = "training_controller approve; or: training_controller reject"
LONGEST_WORDS = 500  # of a person's reason


def question_about(workspace: Workspace, attempt: Attempt) -> Question | None:
    """What a person was asked about what this attempt has trained, answered or not."""
    try:
        question = Question.load(workspace.run(attempt.job).question)
    except ValueError:
        return None  # damaged: it is asked again
    return question if question and question.automatic.attempt == attempt.number else None


def newest_question(workspace: Workspace, job: str) -> Question | None:
    """The same of the job's newest attempt: an older question is about what is no more."""
    attempt = workspace.run(job).newest_attempt()
    return question_about(workspace, attempt) if attempt else None


def waiting_in_words(workspace: Workspace, found: Found | None) -> str | None:
    """That the job in processing waits for a person, and what he can type; None where it does not."""
    question = newest_question(workspace, found.id) if found else None
    waiting = found and question and question.answer is None
    return f"{found.job.file} waits for approval: {REMEDY}" if found and waiting else None


def waits(context: Context, found: Found, attempt: Attempt) -> bool:
    """Whether a person or a judge has still to answer; a judge is called off where nothing may run now."""
    question = question_about(context.workspace, attempt)
    if question and question.answer is None:
        _hold(context, found, question)
        return True
    context.clear("approval")
    if context.judge.is_asked(attempt) and _must_rest(context):
        context.judge.call_off()
    return context.judge.running


def must_wait(context: Context, found: Found, attempt: Attempt) -> bool:
    """Whether a judge has to be asked and cannot be now: then nothing has to be verified for it either."""
    settings = assigning.job_settings(context.workspace, found, context.settings)
    answered = question_about(context.workspace, attempt) or context.judge.heard(attempt)
    return settings.gate.mode == "judge" and not answered and _must_rest(context)


def _must_rest(context: Context) -> bool:
    """A pause frees the GPU, which a judge may use; and who ends, or lives for one round, begins nothing."""
    return context.blocked or context.leaving or context.once


async def ask(
    context: Context,
    found: Found,
    attempt: Attempt,
    question: Question,
    evaluation: Evaluation,
    manifest: Manifest,
) -> Verdict | None:
    """The verdict of whoever was asked about this verified checkpoint; None where he has still to answer."""
    settings, run = assigning.job_settings(context.workspace, found, context.settings), context.workspace.run(found.id)
    before = question_about(context.workspace, attempt)
    if before and before.answer is not None and before.automatic.checkpoint == question.automatic.checkpoint:
        return gate.by_hand(before)
    if question.automatic.mode == "judge":
        heard = context.judge.heard(attempt)
        if heard is None:
            case = _case(context, found, question, evaluation, manifest)
            await context.judge.ask(attempt, settings.gate, case, context.workspace.root, run.judge_log)
            who = f"{found.job.file}: the judge is asked; {question.automatic.reason}"
            context.tracker.event("judge_asked", who, job=found.id, attempt=attempt.number)
            return None
        passed, words = gate.decided(heard, settings.gate.judge_timeout_seconds)
        if passed is not None:
            return gate.answered(question, "judge", passed, words)
        question = question.model_copy(update={"undecided": words})
    question.save(run.question)
    _hold(context, found, question)
    return None


def answer(context: Context, found: Found, question: Question, passed: bool, wish: Wish) -> None:
    """Note a person's answer durably; the gate goes on from it."""
    words = printable(str(wish.options.get("reason") or ""))[:LONGEST_WORDS] or None
    given = {"answer": passed, "words": words, "wish": wish.id, "at": now()}
    question.model_copy(update=given).save(context.workspace.run(found.id).question)


def _hold(context: Context, found: Found, question: Question) -> None:
    undecided = f"{question.undecided}; " if question.undecided else ""
    message = f"{found.job.file} waits for approval: {undecided}{question.automatic.reason}"
    context.hold("approval", "approval", message, REMEDY, found.id, event="approval")


def _case(context: Context, found: Found, question: Question, evaluation: Evaluation, manifest: Manifest) -> Case:
    workspace, automatic = context.workspace, question.automatic
    settings, parent = assigning.job_settings(workspace, found, context.settings), checkpoints.latest(workspace)
    return Case(
        job=found.id,
        file=found.job.file,
        label=found.job.label,
        workspace=str(workspace.root),
        run=str(workspace.run(found.id).root),
        checkpoint=str(workspace.current_model / automatic.checkpoint),
        parent=str(parent) if parent else None,
        base_model=str(workspace.root / settings.base_model),
        method=manifest.method,
        kept=automatic.kept,
        holdout_rows=evaluation.rows,
        loss_before=automatic.accepted_loss,
        loss_after=automatic.validation_loss,
        loss_best=automatic.best_loss,
        automatic_passed=automatic.passed,
        automatic_reason=automatic.reason,
        manifest=manifest.model_dump(mode="json", exclude={"files"}),
    )
