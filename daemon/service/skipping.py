"""Skip with `--keep`: what stands against it, and what of it has been measured."""

from pathlib import Path

from daemon.core.attempts import Assignment, Evaluation
from daemon.core.paths import Attempt
from daemon.jobs.store import Found
from daemon.models import checkpoints
from daemon.service import assigning
from daemon.service.context import Context


def evaluation_of(attempt: Attempt, learned: Path) -> Evaluation | None:
    """What the attempt measured of this checkpoint; where there is no holdout, that there is nothing to measure."""
    assignment, measured = Assignment.load(attempt.assignment), Evaluation.load(attempt.evaluation)
    if assignment and assignment.holdout_key is None:
        return Evaluation(holdout_key=None, rows=0, before=None, after=None, checkpoint=learned.name)
    return measured if measured and measured.checkpoint == learned.name else None


def lacks_evaluation(context: Context, found: Found, attempt: Attempt) -> bool:
    """Whether what a skipped job has learned is to be kept, and was not measured by its newest attempt."""
    learned = checkpoints.learned(context.workspace, found.id) if context.desired.keep else None
    return learned is not None and evaluation_of(attempt, learned) is None


def obstacle(context: Context, found: Found, busy: bool) -> tuple[str, str] | None:
    """Why what a job has learned cannot be kept now, and what to do about it: nobody may measure or judge it."""
    if context.desired.skip == found.id and context.desired.keep and not context.once:
        return None  # it was taken on when it could be done; it waits until it can be done again
    worker_comes = not (context.blocked or context.once) or (busy and context.once)
    if worker_comes or (lacks := _lacks(context, found, busy)) is None:
        return None
    if context.once:
        return f"no daemon runs, and what was learned has to be {lacks}", "start the daemon first; or: skip --drop"
    if context.desired.paused:
        return f"the training is paused, and what was learned has to be {lacks}", "resume first; or: skip --drop"
    return f"the daemon is stopping, and what was learned has to be {lacks}", "start it again first; or: skip --drop"


def _lacks(context: Context, found: Found, busy: bool) -> str | None:
    """What has still to be done with what a job has learned before it can be kept; it takes a process of its own."""
    attempt = context.workspace.run(found.id).newest_attempt()
    assignment = Assignment.load(attempt.assignment) if attempt else None
    learned = checkpoints.learned(context.workspace, found.id)
    if attempt is None or assignment is None or (learned is None and not busy):
        return None
    if assignment.holdout_key and (busy or learned is None or evaluation_of(attempt, learned) is None):
        return "measured"
    mode = assigning.job_settings(context.workspace, found, context.settings).gate.mode
    return "judged" if mode == "judge" else None
