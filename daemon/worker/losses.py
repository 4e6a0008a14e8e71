"""The loss of every label; logits are computed only where there is one."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from daemon.worker.batches import IGNORED
from daemon.worker.memory import is_exhausted

TOLERANCE = 1e-3  # of a mean loss; computing fewer rows of a product changes only the order of its sums


class TokenLosses:
    """Cross entropy of each label, in float32.

    A model's last layer is by far its largest product, and most tokens of a chat have no label: the layer is shown
    only the positions that have one. Models to which that cannot be done compute all logits.
    """

    def __init__(self) -> None:
        self.all_logits_because: str | None = None  # why this model computes them all, in words

    def __call__(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The losses of a micro-batch, sequence by sequence, of shape (labels,).

        The batch lies in main memory: there its labels are found without making the device wait.
        """
        device = next(model.parameters()).device
        labels = batch["labels"][:, 1:]
        sequences, places = torch.nonzero(labels != IGNORED, as_tuple=True)
        targets = labels[sequences, places].to(device)
        positions = (sequences * batch["labels"].shape[1] + places).to(device)
        inputs = {name: part.to(device) for name, part in batch.items() if name != "labels"}
        with _head_sees_only(model, positions) if self.all_logits_because is None else nullcontext():
            logits = model(**inputs, use_cache=False).logits
        if self.all_logits_because is not None:
            logits = logits.flatten(0, 1)[positions]
        return functional.cross_entropy(logits.float(), targets, reduction="none")

    def try_out(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
        """See whether the model's losses are the same with fewer logits. The caller has put it into eval mode."""
        everything = TokenLosses()
        everything.all_logits_because = "to compare"
        try:
            with torch.no_grad():
                expected = everything(model, batch).mean()
                difference = float((self(model, batch).mean() - expected).abs())
        except (AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
            if not is_exhausted(error):  # all logits were too many to compare with: a reason to have fewer
                self.all_logits_because = f"{type(error).__name__}: {error}"
            return
        if not difference <= TOLERANCE * max(float(expected.abs()), 1.0):
            self.all_logits_because = f"the loss would differ by {difference:.2g}"


@contextmanager
def _head_sees_only(model: nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """Show the model's last layer only these of all (sequence, token) positions."""

    def select(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = given
        return (hidden.flatten(0, 1)[positions], *rest)

    head: nn.Module = getattr(model, "module", model).get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
