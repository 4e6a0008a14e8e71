"""Tokens are counted by the rows that the weights contain, whichever attempt has trained them."""

import numpy as np

from daemon.worker.batches import TokenRows
from daemon.worker.tally import Tally


def consumed(*lines: int) -> bytearray:
    return bytearray(np.array(lines, dtype="<u4").tobytes())


def test_every_row_counts_as_often_as_it_was_trained(token_rows: TokenRows) -> None:
    # Row n of the fixture stands in line n + 1 and has n + 1 prompt tokens and three trained ones.
    assert Tally().count(token_rows, consumed(1, 5, 5)) == {"tokens_seen": 4 + 8 + 8, "tokens_trained": 9}


def test_an_attempt_that_goes_on_counts_what_was_trained_before_it(token_rows: TokenRows) -> None:
    rows = consumed(*range(1, 20))
    first = Tally()
    for end in (0, 4, 40, len(rows)):
        said = first.count(token_rows, rows[:end])
    assert Tally().count(token_rows, rows) == said
    assert said["tokens_seen"] == sum(len(token_rows.row(n)[0]) for n in range(19))
    assert said["tokens_trained"] == sum(token_rows.trained_tokens(n) for n in range(19))


def test_a_first_token_that_is_trained_is_not_counted_as_it_is_not_predicted(token_rows: TokenRows) -> None:
    rows = TokenRows.__new__(TokenRows)
    rows.offsets, rows.lines = np.array([0, 3], dtype="<u8"), np.array([1], dtype="<u8")  # type: ignore[assignment]
    rows.mask = np.ones(3, dtype="u1")  # type: ignore[assignment]
    assert Tally().count(rows, consumed(1)) == {"tokens_seen": 3, "tokens_trained": 2}
