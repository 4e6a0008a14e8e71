"""Which rows form an update, and what a micro-batch looks like."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from daemon.worker.batches import IGNORED, FromStep, Stream, TokenRows, Updates, pad


@given(rows=st.integers(1, 60), epochs=st.integers(1, 4), update_rows=st.integers(1, 20), seed=st.integers(0, 9))
def test_every_row_stands_in_the_stream_once_an_epoch(rows: int, epochs: int, update_rows: int, seed: int) -> None:
    stream = Stream(rows, epochs, update_rows, seed, "a file")
    pairs = [pair for step in range(stream.total_steps) for pair in stream.update(step)]
    assert Counter(pairs) == Counter((e, r) for e in range(epochs) for r in range(rows))
    assert [epoch for epoch, _ in pairs] == sorted(epoch for epoch, _ in pairs)


def test_an_update_is_the_same_whether_or_not_those_before_it_were_asked_for() -> None:
    straight = Stream(23, 3, 4, 42, "a file")
    in_order = [straight.update(step) for step in range(straight.total_steps)]
    for step in (17, 3, 9):
        assert Stream(23, 3, 4, 42, "a file").update(step) == in_order[step]


def test_seed_name_and_epoch_change_the_order() -> None:
    orders = [
        [row for step in range(5) for _, row in Stream(50, 2, 10, seed, name).update(step + first)]
        for seed, name, first in ((1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 5))
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_is_the_same_with_every_release_of_every_library() -> None:
    """A file that was begun before an upgrade goes on after it."""
    assert [row for _, row in Stream(12, 2, 12, 42, "a file").update(0)] == [11, 2, 4, 9, 6, 7, 0, 5, 3, 10, 8, 1]
    assert [row for _, row in Stream(12, 2, 12, 42, "a file").update(1)] == [1, 4, 2, 8, 9, 11, 3, 10, 0, 5, 7, 6]


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_the_micro_batch_does_not_change_which_rows_form_an_update(token_rows: TokenRows, micro: int) -> None:
    updates = Updates(token_rows, Stream(23, 1, 8, 0, "x"), micro, pad_id=0)
    wide = Updates(token_rows, Stream(23, 1, 8, 0, "x"), 8, pad_id=0)
    for step in range(3):
        assert updates[step]["rows"] == wide[step]["rows"]
        assert updates[step]["trained_tokens"] == wide[step]["trained_tokens"] == 3 * len(wide[step]["rows"])
        assert max(len(b["input_ids"]) for b in updates[step]["micro_batches"]) <= micro


def test_a_micro_batch_is_padded_on_the_right_and_trains_only_what_the_mask_says(token_rows: TokenRows) -> None:
    batch = pad(token_rows, [2, 0], pad_id=99)
    assert batch["input_ids"].tolist() == [[12, 12, 12, 5, 6, 7], [10, 5, 6, 7, 99, 99]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 4 + [0] * 2]
    assert batch["labels"].tolist() == [[IGNORED] * 3 + [5, 6, 7], [IGNORED, 5, 6, 7, IGNORED, IGNORED]]


def test_collating_draws_no_random_number(token_rows: TokenRows) -> None:
    before = torch.get_rng_state()
    Updates(token_rows, Stream(23, 2, 8, 0, "x"), 4, pad_id=0)[5]
    assert torch.equal(before, torch.get_rng_state())


def test_resuming_is_an_offset() -> None:
    assert list(FromStep(3, 7)) == [3, 4, 5, 6]
    assert len(FromStep(7, 7)) == 0
