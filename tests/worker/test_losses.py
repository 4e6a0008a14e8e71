"""Logits are computed only where there is a label; a model to which that cannot be done computes them all."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from daemon.worker.batches import IGNORED, TokenRows, pad
from daemon.worker.losses import TokenLosses

ROWS = [3, 0, 7]


@pytest.fixture
def batch(token_rows: TokenRows) -> dict[str, torch.Tensor]:
    return pad(token_rows, ROWS, 0)


def by_all_logits(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> list[float]:
    """Label by label, from the model's whole output."""
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    chances = torch.log_softmax(output.float(), -1)
    return [
        -float(chances[row, place - 1, batch["labels"][row, place]].detach())
        for row in range(len(ROWS))
        for place in range(batch["labels"].shape[1])
        if batch["labels"][row, place] != IGNORED
    ]


def seen_by_the_head(model: PreTrainedModel, losses: TokenLosses, batch: dict[str, torch.Tensor]) -> torch.Size:
    shapes = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _, given, out: shapes.append(out.shape))
    losses(model, batch)
    handle.remove()
    return shapes[-1]


def test_each_label_has_the_loss_that_all_logits_give_it(
    model: PreTrainedModel, batch: dict[str, torch.Tensor]
) -> None:
    losses = TokenLosses()
    losses.try_out(model, batch)
    assert losses.all_logits_because is None
    assert losses(model, batch).tolist() == pytest.approx(by_all_logits(model, batch), abs=1e-5)
    assert len(by_all_logits(model, batch)) == 9
    assert seen_by_the_head(model, losses, batch)[0] == 9


class LooksAtTheWhole(nn.Module):
    """A last layer that needs to know which sequence a token stands in."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.weight = inner.weight

    def forward(self, hidden: torch.Tensor) -> Any:
        rows, tokens, _ = hidden.shape
        return self.inner(hidden).view(rows, tokens, -1)


class MixesPositions(LooksAtTheWhole):
    def forward(self, hidden: torch.Tensor) -> Any:
        return self.inner(hidden - hidden.mean(-2, keepdim=True))


@pytest.mark.parametrize("kind", [LooksAtTheWhole, MixesPositions])
def test_a_model_whose_last_layer_needs_every_position_computes_them_all(
    kind: type[LooksAtTheWhole], model: PreTrainedModel, batch: dict[str, torch.Tensor]
) -> None:
    model.set_output_embeddings(kind(model.get_output_embeddings()))
    losses = TokenLosses()
    losses.try_out(model, batch)
    assert losses.all_logits_because
    assert losses(model, batch).tolist() == pytest.approx(by_all_logits(model, batch), abs=1e-5)


def test_rows_without_a_label_have_no_losses(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    batch["labels"][:] = IGNORED
    losses = TokenLosses()(model, batch)
    assert losses.shape == (0,)
    losses.sum().backward()
