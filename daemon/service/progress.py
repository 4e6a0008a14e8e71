"""Whether a job advances from attempt to attempt."""

from daemon.core.attempts import Assignment, ExitInfo, Outcome
from daemon.core.paths import Attempt, Workspace
from daemon.jobs.recovery import Ending, classify
from daemon.models import checkpoints

FAILED_ENDINGS = (
    Ending.OUT_OF_MEMORY,
    Ending.NOT_FINITE,
    Ending.GPU,
    Ending.BUG,
    Ending.KILLED,
)


def attempts_without(workspace: Workspace, job: str) -> int:
    """How many failed attempts began where the newest one began: none of them left a newer checkpoint.

    Those before a retry do not count: something may have been mended since.
    """
    run = workspace.run(job)
    newest = run.newest_attempt()
    if newest is None:
        return 0
    last = Assignment.load(newest.assignment)
    made = next(iter(checkpoints.of_job(workspace, job, last.parent if last else None)), None)
    resume = last.resume if last else None
    if made is not None and str(made.relative_to(workspace.root)) != resume:
        return 0
    count = 0
    for number in range(newest.number, last.first_attempt - 1 if last else 0, -1):
        beginning = Assignment.load(run.attempt(number).assignment)
        if beginning is None or beginning.resume != resume:
            break
        count += failed(run.attempt(number))
    return count


def failed(attempt: Attempt) -> bool:
    ending, _ = classify(Outcome.load(attempt.outcome), ExitInfo.load(attempt.exit), attempt.heartbeat.exists())
    if ending is Ending.KILLED and attempt.control.exists():
        return False  # it was asked to end, and did not in time: that says nothing against the file
    return ending in FAILED_ENDINGS
