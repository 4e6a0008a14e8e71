"""How many tokens the weights contain of a job: those of its consumed rows, whichever attempt has trained them."""

import numpy as np

from daemon.worker.batches import TokenRows


class Tally:
    """Counts what has come to the list of consumed rows since the last look at it."""

    def __init__(self) -> None:
        self._counted_bytes = self._seen = self._trained = 0
        self._lengths: np.ndarray
        self._trained_lengths: np.ndarray

    def count(self, rows: TokenRows, consumed: bytearray) -> dict[str, int]:
        """Tokens of the rows in `consumed` (as consumed.bin has them), and those of them with a label."""
        if not self._counted_bytes:
            self._measure(rows)
        lines = np.frombuffer(bytes(consumed[self._counted_bytes :]), dtype="<u4")
        found = np.searchsorted(rows.lines, lines)
        self._seen += int(self._lengths[found].sum())
        self._trained += int(self._trained_lengths[found].sum())
        self._counted_bytes = len(consumed)
        return {"tokens_seen": self._seen, "tokens_trained": self._trained}

    def _measure(self, rows: TokenRows) -> None:
        """Of every row, in one pass over the mask. A row's first token is never predicted."""
        starts = np.asarray(rows.offsets[:-1], dtype=np.int64)
        self._lengths = np.diff(np.asarray(rows.offsets, dtype=np.int64))
        self._trained_lengths = np.add.reduceat(rows.mask, starts, dtype=np.int64) - rows.mask[starts]
