"""Losses that are far above what was usual: noted, with their rows, since such rows are worth a look."""

from collections import deque
from statistics import median

USUAL_UPDATES = 50  # of which the usual loss is the median
LEAST_UPDATES = 20  # before anything is usual
TIMES, SPREADS = 1.5, 6.0  # of the usual loss, and of the usual distance from it: both have to be passed


class Spikes:
    """Looks at the loss of one update after the other."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=USUAL_UPDATES)
        self._quiet_for = 0  # updates, after a spike: what follows belongs to it

    def usual(self, loss: float) -> float | None:
        """The usual loss, where this one is a spike above it; None where it is not."""
        found = self._judge(loss) if self._quiet_for <= 0 else None
        self._losses.append(loss)
        self._quiet_for = LEAST_UPDATES if found is not None else self._quiet_for - 1
        return found

    def _judge(self, loss: float) -> float | None:
        if len(self._losses) < LEAST_UPDATES:
            return None
        middle = median(self._losses)
        if loss <= TIMES * middle:  # first: it is nearly always so, and costs nothing more
            return None
        spread = median(abs(other - middle) for other in self._losses)
        return middle if loss > middle + SPREADS * spread else None
