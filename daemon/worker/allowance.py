"""What measuring may take, and how fast it was."""

import time
from collections import defaultdict
from dataclasses import dataclass, field

from daemon.worker.callbacks import Orders


class Unmeasured(Exception):  # caught where suites are measured: it becomes the reason beside the figures
    """Why there are no figures, in words."""


class Allowance:
    """The time that measuring may take; an order of the daemon's ends it too."""

    def __init__(self, seconds: float, orders: Orders) -> None:
        self.seconds, self._orders = seconds, orders
        self._began = time.monotonic()

    @property
    def spent(self) -> float:
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        return self.seconds - self.spent

    def check(self) -> None:
        """Raises Unmeasured where it is over."""
        if order := self._orders.pending():
            raise Unmeasured(f"{order.action} was asked for: {order.reason}")
        if self.left <= 0:
            raise Unmeasured(f"no time: {self.seconds:.1f} s did not suffice")


@dataclass
class Speeds:
    """How much was read and generated, and in what time."""

    read: dict[int, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    generated: list[float] = field(default_factory=lambda: [0.0, 0.0])  # tokens, seconds

    def by_length(self) -> dict[int, float]:
        """Tokens a second by the power of two into which the longest row of a batch fits."""
        return {length: round(tokens / seconds, 1) for length, (tokens, seconds) in sorted(self.read.items())}

    def of_generation(self) -> float | None:
        tokens, seconds = self.generated
        return round(tokens / seconds, 1) if tokens else None
