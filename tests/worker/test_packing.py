"""Packed rows are trained as separate ones: the same loss, the same gradients, or no packing at all."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from daemon.core.config import Settings
from daemon.core.heartbeat import Heartbeat
from daemon.worker.batches import Layout, Stream, TokenRows, Updates, collate, fill, pad
from daemon.worker.evaluate import token_loss
from daemon.worker.packing import choose_layout

SETTINGS = Settings(model_name="m", base_model="b")
IMPLEMENTATIONS = ("eager", "sdpa")  # what a machine without a GPU may select


def two_layers(implementation: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attn_implementation=implementation,
    )
    return Qwen3ForCausalLM(config)


def gradients(
    model: PreTrainedModel, batches: list[dict[str, torch.Tensor]], trained: int
) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = token_loss(model, batch)[0].sum() / trained
        loss.backward()
        total += float(loss.detach())
    return total, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def difference(model: PreTrainedModel, rows: TokenRows, break_positions: bool = False) -> float:
    """The largest difference between the gradients of an update packed and padded, losses included."""
    stream = Stream(len(rows), 1, 16, 0, "x")
    results = []
    for layout in (Layout.PADDED, Layout.PACKED, Layout.FLAT):
        item = Updates(rows, stream, 4, 0, layout)[0]
        if break_positions and layout is not Layout.PADDED:
            for batch in item["micro_batches"]:
                batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
        loss, grads = gradients(model, item["micro_batches"], item["trained_tokens"])
        results.append([torch.tensor(loss), *grads])
    return max(float((a - b).abs().max()) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_packed_loss_and_gradients_equal_the_padded_ones(implementation: str, token_rows: TokenRows) -> None:
    assert difference(two_layers(implementation), token_rows) < 1e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_the_restart_of_positions_they_differ(implementation: str, token_rows: TokenRows) -> None:
    assert difference(two_layers(implementation), token_rows, break_positions=True) > 1e-3


def test_the_first_token_of_a_packed_row_is_not_predicted_from_the_row_before(token_rows: TokenRows) -> None:
    batch = collate(token_rows, [[0, 1]], pad_id=0)
    assert batch["input_ids"].tolist() == [[10, 5, 6, 7, 11, 11, 5, 6, 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4]]
    assert batch["labels"][0, 4] == -100


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_every_row_is_laid_into_one_sequence_and_none_overflows(lengths: list[int]) -> None:
    capacity = max(lengths)
    sequences = fill(lengths, capacity)
    assert sorted(place for s in sequences for place in s) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in s) <= capacity for s in sequences)
    assert len(sequences) <= 2 * -(-sum(lengths) // capacity)


@pytest.mark.parametrize("layout", list(Layout))
def test_no_micro_batch_is_larger_than_its_rows_would_be_padded(layout: Layout, token_rows: TokenRows) -> None:
    item = Updates(token_rows, Stream(23, 1, 16, 0, "x"), 4, 0, layout)[0]
    longest = max(len(token_rows.row(i)[0]) for i in item["rows"])
    assert all(batch["input_ids"].numel() <= 4 * longest for batch in item["micro_batches"])
    real = sum(int((batch["labels"] != -100).sum()) for batch in item["micro_batches"])
    assert real == item["trained_tokens"]


def test_a_model_that_keeps_rows_apart_is_packed(token_rows: TokenRows, tmp_path: Path) -> None:
    layout, why = choose_layout(two_layers("sdpa"), token_rows, SETTINGS, 0, Heartbeat(tmp_path / "beat"))
    assert layout is Layout.PACKED and "same logits" in why


def test_a_model_that_ignores_positions_is_padded_and_it_is_said(token_rows: TokenRows, tmp_path: Path) -> None:
    """Like models of linear attention: state runs on from row to row, whatever the positions say."""

    class Leaky(Qwen3ForCausalLM):
        def forward(self, *arguments, position_ids=None, **named):  # type: ignore[no-untyped-def]
            return super().forward(*arguments, **named)

    leaky = Leaky(two_layers("sdpa").config)
    layout, why = choose_layout(leaky, token_rows, SETTINGS, 0, Heartbeat(tmp_path / "beat"))
    assert layout is Layout.PADDED and "disturb each other" in why


def test_a_model_without_positions_is_padded(token_rows: TokenRows, tmp_path: Path) -> None:
    bloom = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))
    layout, why = choose_layout(bloom, token_rows, SETTINGS, 0, Heartbeat(tmp_path / "beat"))
    assert layout is Layout.PADDED and "disturb each other" in why


def test_packing_can_be_switched_off(token_rows: TokenRows, tmp_path: Path) -> None:
    off = SETTINGS.model_copy(update={"packing": False})
    layout, why = choose_layout(two_layers("sdpa"), token_rows, off, 0, Heartbeat(tmp_path / "beat"))
    assert layout is Layout.PADDED and why == "packing is off"


def test_a_padded_batch_has_a_mask_and_no_positions(token_rows: TokenRows) -> None:
    assert set(pad(token_rows, [0, 1], 0)) == {"input_ids", "attention_mask", "labels"}
