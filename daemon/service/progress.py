"""What became of a job's attempts, and whether it advances from one to the next."""

from collections.abc import Iterator

from daemon.core import heartbeat
from daemon.core.attempts import Assignment, ExitInfo, Outcome
from daemon.core.paths import Attempt, Workspace
from daemon.jobs.recovery import Ending, Tally, classify
from daemon.jobs.remedies import micro_batch_rows
from daemon.models import checkpoints

FAILED_ENDINGS = (Ending.NOT_FINITE, Ending.GPU, Ending.BUG, Ending.KILLED)


def tally(workspace: Workspace, job: str) -> Tally:
    """What the job's attempts have come to.

    Those before a retry do not count: something may have been mended since.
    """
    newest = workspace.run(job).newest_attempt()
    last = Assignment.load(newest.assignment) if newest else None
    if newest is None or last is None:
        return Tally()
    endings = [ended_as(attempt)[0] for attempt in since_beginning(newest, last)]
    return Tally(
        without_progress=_without_progress(workspace, newest, last),
        not_finite=endings.count(Ending.NOT_FINITE),
        micro_batch_rows=micro_batch_rows(last),
    )


def since_beginning(newest: Attempt, last: Assignment) -> Iterator[Attempt]:
    """The attempts of this beginning at the first row, the newest first; `last` is what the newest was assigned."""
    for number in range(newest.number, last.first_attempt - 1, -1):
        yield Attempt(newest.root.with_name(str(number)))


def ended_as(attempt: Attempt) -> tuple[Ending, str]:
    """How an attempt that has ended did so, and why, in words."""
    outcome, exit_info = Outcome.load(attempt.outcome), ExitInfo.load(attempt.exit)
    return classify(outcome, exit_info, heartbeat.last_phase(attempt.heartbeat))


def poisoned(newest: Attempt, last: Assignment) -> list[tuple[int, ...]]:
    """The lines of the rows for which attempts ended as not finite, attempt by attempt."""
    outcomes = [Outcome.load(attempt.outcome) for attempt in since_beginning(newest, last)]
    return [outcome.lines for outcome in outcomes if outcome and outcome.lines]


def _without_progress(workspace: Workspace, newest: Attempt, last: Assignment) -> int:
    """How many failed attempts began where the newest one began: none of them left a newer checkpoint."""
    made = next(iter(checkpoints.of_job(workspace, last.job, last.parent)), None)
    if made is not None and str(made.relative_to(workspace.root)) != last.resume:
        return 0
    count = 0
    for attempt in since_beginning(newest, last):
        beginning = Assignment.load(attempt.assignment)
        if beginning is None or beginning.resume != last.resume:
            break
        count += failed(attempt)
    return count


def failed(attempt: Attempt) -> bool:
    ending, _ = ended_as(attempt)
    if ending is Ending.KILLED and attempt.control.exists():
        return False  # it was asked to end, and did not in time: that says nothing against the file
    return ending in FAILED_ENDINGS
