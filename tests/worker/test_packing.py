"""Packed rows are trained as separate ones: the same loss, the same gradients, or no packing at all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from daemon.core import files
from daemon.core.config import Settings
from daemon.core.heartbeat import Heartbeat
from daemon.data.tokens import TokensWriter, packed
from daemon.worker.batches import IGNORED, Layout, Stream, TokenRows, Updates, collate, fill, pad
from daemon.worker.losses import TokenLosses
from daemon.worker.packing import choose_layout

SETTINGS = Settings(model_name="m", base_model="b")
# What can be selected with torch alone; flash attention needs a GPU, and is tried there before the first packed step.
IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")


@pytest.fixture
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An implementation of attention that can learn here. torch compiles flex_attention, which takes a minute, and
    refuses its backward on a CPU; the description that it compiles runs here as it is, backward too.
    """
    monkeypatch.setattr("torch.compile", lambda kernel, **_: kernel)
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    return str(request.param)


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
        loss = TokenLosses()(model, batch).sum() / trained
        loss.backward()
        total += float(loss.detach())
    return total, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def by_transformers(model: PreTrainedModel, rows: TokenRows, indices: list[int]) -> tuple[float, list[torch.Tensor]]:
    """The loss and the gradients of an update, each of its rows alone, with the loss that transformers computes."""
    model.zero_grad()
    trained = sum(int(rows.row(i)[1].sum()) for i in indices)  # each begins with what is not trained
    total = 0.0
    for i in indices:
        ids, mask = (torch.from_numpy(part.astype(np.int64))[None] for part in rows.row(i))
        loss = model(input_ids=ids, labels=torch.where(mask == 1, ids, IGNORED)).loss * int(mask.sum()) / trained
        loss.backward()
        total += float(loss.detach())
    return total, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def difference(model: PreTrainedModel, rows: TokenRows, layout: Layout, break_positions: bool = False) -> float:
    """The largest difference between the gradients of an update laid out and of its rows alone, losses included."""
    item = Updates(rows, Stream(len(rows), 1, 16, 0, "x"), 4, 0, layout)[0]
    loss, grads = by_transformers(model, rows, item["rows"])
    if break_positions:
        for batch in item["micro_batches"]:
            batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    our_loss, our_grads = gradients(model, item["micro_batches"], item["trained_tokens"])
    return max(abs(our_loss - loss), *(float((a - b).abs().max()) for a, b in zip(our_grads, grads, strict=True)))


every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
# transformers asks for a compiled mask by an old name; torch says that kernels are slow where they are not compiled.
tolerant = pytest.mark.filterwarnings("ignore:_compile flag", "ignore:flex_attention called without torch.compile")


@tolerant
@every_implementation
@pytest.mark.parametrize("layout", list(Layout))
def test_loss_and_gradients_equal_those_of_each_row_alone(
    implementation: str, layout: Layout, token_rows: TokenRows
) -> None:
    assert difference(two_layers(implementation), token_rows, layout) < 1e-5


@tolerant
@every_implementation
@pytest.mark.parametrize("layout", [Layout.PACKED, Layout.FLAT])
def test_without_the_restart_of_positions_they_differ(
    implementation: str, layout: Layout, token_rows: TokenRows
) -> None:
    assert difference(two_layers(implementation), token_rows, layout, break_positions=True) > 1e-3


def test_the_first_token_of_a_packed_row_is_not_predicted_from_the_row_before(token_rows: TokenRows) -> None:
    batch = collate(token_rows, [[0, 1]], pad_id=0)
    assert batch["input_ids"].tolist() == [[10, 5, 6, 7, 11, 11, 5, 6, 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4]]
    assert batch["labels"][0, 4] == -100


def test_of_packed_texts_which_are_trained_whole_only_the_first_token_is_no_label(tmp_path: Path) -> None:
    with files.stage(tmp_path / "tokens") as folder, TokensWriter(folder) as writer:
        for number, ids in enumerate(([4, 5, 6], [7], [8, 9]), 1):
            writer.append(packed(ids), b"\1" * len(ids), number, bytes(16))
        writer.finish("0" * 64, "1" * 64, 0)
    rows = TokenRows(tmp_path / "tokens")
    batch = collate(rows, [[0, 1, 2]], pad_id=0)
    assert batch["labels"].tolist() == [[IGNORED, 5, 6, IGNORED, IGNORED, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1]]
    assert pad(rows, [0, 1, 2], pad_id=0)["labels"].tolist() == [[IGNORED, 5, 6], [IGNORED] * 3, [IGNORED, 9, IGNORED]]
    assert [rows.trained_tokens(index) for index in range(3)] == [2, 0, 1]


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


def test_a_kernel_of_attention_that_lets_rows_see_each_other_is_found_out(
    token_rows: TokenRows, tmp_path: Path
) -> None:
    """Whichever implementation a model's config.json selects is tried, known or not."""

    def look_at_all_before(module, query, key, value, attention_mask, **named):  # type: ignore[no-untyped-def]
        return sdpa_attention_forward(module, query, key, value, None, **named)

    ALL_ATTENTION_FUNCTIONS.register("leaky", look_at_all_before)
    model = two_layers("leaky")
    layout, why = choose_layout(model, token_rows, SETTINGS, 0, Heartbeat(tmp_path / "beat"))
    assert layout is Layout.PADDED and "disturb each other" in why
    assert difference(model, token_rows, Layout.PACKED) > 1e-3, "packed it would have been trained wrongly"


def test_a_kernel_of_attention_that_refuses_packed_rows_is_given_padded_ones(
    token_rows: TokenRows, tmp_path: Path
) -> None:
    def refuse_one_sequence(module, query, *arguments, **named):  # type: ignore[no-untyped-def]
        if len(query) == 1:
            raise NotImplementedError("no packed rows")
        return sdpa_attention_forward(module, query, *arguments, **named)

    ALL_ATTENTION_FUNCTIONS.register("refusing", refuse_one_sequence)
    layout, why = choose_layout(two_layers("refusing"), token_rows, SETTINGS, 0, Heartbeat(tmp_path / "beat"))
    assert layout is Layout.PADDED and "takes no packed rows (NotImplementedError: no packed rows)" in why


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
