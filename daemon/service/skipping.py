"""Skip with `--keep`: what stands against it, and what of it has been measured."""

from pathlib import Path

from daemon.core.attempts import Assignment, Evaluation
from daemon.core.paths import Attempt
from daemon.jobs.store import Found
from daemon.models import checkpoints
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
    """Why what a job has learned cannot be judged now, and what to do about it: no worker may measure it."""
    if context.desired.skip == found.id and context.desired.keep and not context.once:
        return None  # it was taken on when it could be done; it waits until it can be done again
    worker_comes = not (context.blocked or context.once) or (busy and context.once)
    attempt = context.workspace.run(found.id).newest_attempt()
    assignment = Assignment.load(attempt.assignment) if attempt else None
    if worker_comes or attempt is None or assignment is None or assignment.holdout_key is None:
        return None
    learned = checkpoints.learned(context.workspace, found.id)
    if not busy and (learned is None or evaluation_of(attempt, learned) is not None):
        return None
    if context.once:
        return "no daemon runs that could measure what was learned", "start the daemon first; or: skip --drop"
    if context.desired.paused:
        return "the training is paused, and what was learned has to be measured", "resume first; or: skip --drop"
    return "the daemon is stopping, and what was learned has to be measured", "start it again first; or: skip --drop"
