"""What the next attempt of a job does otherwise, after what became of the ones before: pure functions."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from daemon.core.attempts import Assignment, Manifest, RateChange
from daemon.core.config import Settings
from daemon.jobs.recovery import Ending

LESS = 0.5  # of the learning rate, after numbers that were not finite
SUSPECT_TIMES = 2  # a row that was so often in updates that ended an attempt is left out


def remedied(
    before: Assignment, ending: Ending, why: str, first_step: int, poisoned: Iterable[Iterable[int]]
) -> dict[str, Any]:
    """The fields of the next assignment of a job that differ from the settings.

    `first_step` is where it begins; `poisoned` has the lines of the rows for which attempts ended as not finite.
    """
    rows, changes, because = before.micro_batch_rows, before.rate_changes, before.no_generation_because
    if ending is Ending.OUT_OF_MEMORY:
        rows = max(1, micro_batch_rows(before) // 2)
    if ending is Ending.NOT_FINITE:
        changes = slower(changes, first_step)
    if ending is Ending.GENERATION_HUNG:
        because = why
    counts = Counter(line for lines in poisoned for line in set(lines))
    return {
        "micro_batch_rows": rows,
        "rate_changes": changes,
        "no_generation_because": because,
        "left_out": tuple(sorted(line for line, times in counts.items() if times >= SUSPECT_TIMES)),
    }


def slower(changes: tuple[RateChange, ...], first_step: int) -> tuple[RateChange, ...]:
    """The rate as it was up to an update, and from there on half of what it was last."""
    factor = changes[-1].factor if changes else 1.0
    kept = (change for change in changes if change.from_step < first_step)
    return (*kept, RateChange(from_step=first_step, factor=factor * LESS))


def micro_batch_rows(assignment: Assignment) -> int:
    """Rows a micro-batch of an attempt."""
    return assignment.micro_batch_rows or Settings.model_validate(assignment.settings).micro_batch_rows


def inherited_rows(settings: Settings, accepted: Manifest | None) -> int | None:
    """The rows a micro-batch for which memory sufficed in this lineage, until the settings ask for more than then."""
    if accepted is None or accepted.micro_batch_rows is None or accepted.micro_batch_asked is None:
        return None
    asked, sufficed = settings.micro_batch_rows, accepted.micro_batch_rows
    # With `auto` each file asks for its own number: what was too much is so for a smaller wish as well.
    return sufficed if sufficed < asked <= accepted.micro_batch_asked else None
