"""What watching costs: one wrapper around all of it, and its sums on disk."""

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from daemon.core import files
from daemon.core.records import now


class Cost(StrEnum):
    """What time is spent on beside training itself."""

    NUMBERS = "numbers"  # every logging_steps: the line of the log and its example
    VALIDATION = "validation"  # every eval_steps: loss on the first rows of the holdout
    GENERATION = "generation"  # every eval_steps: answers
    SAVE = "save"  # that training waited for checkpoints
    GATE = "gate"  # the whole holdout, before the first update and after the last


WATCHING = (Cost.NUMBERS, Cost.VALIDATION, Cost.GENERATION)


class Costs:
    """Seconds of one attempt, from its first update on."""

    def __init__(self, path: Path, job: str, attempt: int) -> None:
        self._path, self._job, self._attempt = path, job, attempt
        self.seconds: defaultdict[Cost, float] = defaultdict(float)
        self._times: Counter[Cost] = Counter()
        self._began = time.monotonic()
        self._inside = False
        self._shown_at = self._began

    def begin(self) -> None:
        """Training begins now; what was spent before it is kept."""
        self._began = time.monotonic() - self.seconds[Cost.GATE]

    @contextmanager
    def of(self, cost: Cost) -> Iterator[None]:
        """Count the block's seconds as this cost; a block inside another is counted once."""
        if self._inside:
            yield
            return
        began, self._inside = time.monotonic(), True
        try:
            yield
        finally:
            self._inside = False
            self.seconds[cost] += time.monotonic() - began
            self._times[cost] += 1

    @property
    def elapsed(self) -> float:
        """Seconds since training began, all costs included but the gate's."""
        return max(time.monotonic() - self._began - self.seconds[Cost.GATE], 1e-9)

    @property
    def watching(self) -> float:
        return sum(self.seconds[cost] for cost in WATCHING)

    def show(self, *, after_seconds: float = 0.0) -> None:
        """Write the sums, where it was so long ago. What cannot be written is lost, and training goes on."""
        if time.monotonic() - self._shown_at < after_seconds:
            return
        self._shown_at, elapsed = time.monotonic(), self.elapsed
        facts = {
            cost.value: {
                "seconds": round(self.seconds[cost], 4),
                "percent": round(100 * self.seconds[cost] / elapsed, 2),
                "times": self._times[cost],
            }
            for cost in Cost
        }
        with contextlib.suppress(OSError):
            files.write_json(
                self._path,
                {
                    "schema_version": 1,
                    "job": self._job,
                    "attempt": self._attempt,
                    "updated_at": now(),
                    "training_seconds": round(elapsed, 4),
                    "watching_percent": round(100 * self.watching / elapsed, 2),
                    "costs": facts,
                },
            )
