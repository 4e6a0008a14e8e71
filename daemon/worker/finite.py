"""Updates whose loss or gradient is not a number: kept out of the weights, counted, and named by their rows."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

MOST_IN_A_ROW = 3  # skipped updates; after more of them something is wrong that skipping does not mend
MOST_PENDING = 16  # updates of which the host does not know yet what became of them


class NotFinite(Exception):
    """Update after update was not a number; the weights are untouched by all of them."""

    def __init__(self, message: str, lines: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.lines = tuple(lines)  # of the rows in those updates


@dataclass(frozen=True)
class Update:
    """One update before its step."""

    step: int  # of the job
    lines: list[int]  # of its rows in the data file
    loss: float  # mean a trained token
    gradient: float  # its norm before it was clipped
    skipped: bool


class Guard:
    """Decides on the device whether an update may enter the weights, and tells the host when it asks.

    A fused optimizer is given the decision as the mark that mixed precision uses: it leaves weights, moments and its
    count of steps as they are, and nothing waits for the device. Any other loses the gradients, with the same effect.
    """

    def __init__(self, skipped: int, in_a_row: Iterable[dict[str, Any]] = ()) -> None:
        self.skipped = skipped  # updates of this job
        self._in_a_row = [Update(**facts, loss=math.nan, gradient=math.nan, skipped=True) for facts in in_a_row]
        self._pending: list[tuple[int, list[int], torch.Tensor]] = []

    def admit(
        self,
        optimizer: torch.optim.Optimizer,
        step: int,
        lines: list[int],
        loss: torch.Tensor,
        gradient: torch.Tensor | float,
    ) -> None:
        """Keep an update out of the optimizer's next step where it is not finite."""
        figures = torch.stack([loss, torch.as_tensor(gradient, device=loss.device, dtype=loss.dtype)])
        self._pending.append((step, lines, figures))
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = (~torch.isfinite(figures).all()).float()  # type: ignore[attr-defined]
        elif not torch.isfinite(figures).all():
            optimizer.zero_grad()

    @property
    def in_a_row(self) -> list[dict[str, Any]]:
        """The skipped updates since the last one that was not, of those that are settled; for a new guard."""
        return [{"step": update.step, "lines": update.lines} for update in self._in_a_row]

    @property
    def full(self) -> bool:
        """Whether it is time to settle."""
        return len(self._pending) >= MOST_PENDING

    def settle(self) -> list[Update]:
        """What became of the updates since the last call, in their order; the device is waited for."""
        pending, self._pending = self._pending, []
        if not pending:
            return []
        figures = torch.stack([figures for *_, figures in pending])
        finite = torch.isfinite(figures).all(1).tolist()
        updates = [
            Update(step=step, lines=lines, loss=loss, gradient=gradient, skipped=not good)
            for (step, lines, _), (loss, gradient), good in zip(pending, figures.tolist(), finite, strict=True)
        ]
        for update in updates:
            self._in_a_row = [*self._in_a_row, update] if update.skipped else []
            self.skipped += update.skipped
            self._check()
        return updates

    def _check(self) -> None:
        if len(self._in_a_row) <= MOST_IN_A_ROW:
            return
        last, lines = self._in_a_row[-1], [line for update in self._in_a_row for line in update.lines]
        raise NotFinite(
            f"{len(self._in_a_row)} updates in a row are not finite (loss {last.loss}, gradient norm {last.gradient} "
            f"in update {last.step}); their rows stand in lines {lines}",
            lines,
        )
