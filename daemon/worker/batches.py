"""Batches from the token cache: which rows form an update is decided by the stream alone, collation is pure."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from daemon.core.errors import BadData

IGNORED = -100  # the label that cross_entropy passes over


class TokenRows:
    """The rows of a token cache, memory-mapped: nothing is read before it is needed."""

    def __init__(self, folder: Path) -> None:
        self.offsets = np.memmap(folder / "rows.bin", dtype="<u8", mode="r")
        self.lines = np.memmap(folder / "lines.bin", dtype="<u8", mode="r")
        self._ids = np.memmap(folder / "ids.bin", dtype="<i4", mode="r")
        self._mask = np.memmap(folder / "mask.bin", dtype="u1", mode="r")
        if len(self.offsets) < 2:
            raise BadData(f"The token cache {folder} holds no row.", "drop the file again, so that it is read anew")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (int32) and mask (uint8, 1 = trained) of one row, both of its length in tokens."""
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return self._ids[start:end], self._mask[start:end]

    def trained_tokens(self, index: int) -> int:
        """How many tokens of the row are predicted and trained; the first token is never predicted."""
        return int(self.row(index)[1][1:].sum())


class Stream:
    """The one flat stream of (epoch, row) of a job: a pure function of the seed, its name and the numbers of rows.

    The name says which data is trained at which global step, so that a lineage can be trained again elsewhere.
    """

    def __init__(self, rows: int, epochs: int, update_rows: int, seed: int, name: str) -> None:
        self.rows, self.epochs, self.update_rows = rows, epochs, update_rows
        self._seed, self._name = seed, name
        self._orders: dict[int, np.ndarray] = {}

    @property
    def total_rows(self) -> int:
        return self.rows * self.epochs

    @property
    def total_steps(self) -> int:
        return -(-self.total_rows // self.update_rows)

    def update(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, row) pairs of update `step`, counted from 0; an update may reach into the next epoch."""
        first = step * self.update_rows
        positions = range(first, min(first + self.update_rows, self.total_rows))
        return [(p // self.rows, int(self._order(p // self.rows)[p % self.rows])) for p in positions]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            seed = derive_seed(self._seed, self._name, f"epoch {epoch}")
            self._orders[epoch] = np.random.Generator(np.random.PCG64(seed)).permutation(self.rows)
        return self._orders[epoch]


def derive_seed(seed: int, *parts: str) -> int:
    """A seed of 63 bits from the run's seed and what it is for."""
    digest = hashlib.sha256("\0".join([str(seed), *parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def collate(rows: TokenRows, indices: list[int], pad_id: int) -> dict[str, torch.Tensor]:
    """One micro-batch, padded on the right to its longest row.

    Returns input_ids, attention_mask and labels, each int64 of shape (rows, tokens).
    """
    pieces = [rows.row(i) for i in indices]
    longest = max(len(ids) for ids, _ in pieces)
    input_ids = torch.full((len(pieces), longest), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED)
    for place, (ids, mask) in enumerate(pieces):
        tokens = torch.from_numpy(ids.astype(np.int64))
        input_ids[place, : len(ids)] = tokens
        attention_mask[place, : len(ids)] = 1
        labels[place, : len(ids)] = torch.where(torch.from_numpy(mask.astype(bool)), tokens, IGNORED)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


class Updates(Dataset[dict[str, Any]]):
    """Item `step` is one whole update: its rows, cut into micro-batches, and the number of its trained tokens."""

    def __init__(self, rows: TokenRows, stream: Stream, micro_batch_rows: int, pad_id: int) -> None:
        self.rows, self.stream = rows, stream
        self._micro_batch_rows, self._pad_id = micro_batch_rows, pad_id

    def __len__(self) -> int:
        return self.stream.total_steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        indices = [row for _, row in self.stream.update(step)]
        cuts = range(0, len(indices), self._micro_batch_rows)
        return {
            "micro_batches": [collate(self.rows, indices[c : c + self._micro_batch_rows], self._pad_id) for c in cuts],
            "trained_tokens": sum(self.rows.trained_tokens(i) for i in indices),
            "tokens": sum(len(self.rows.row(i)[0]) for i in indices),
            "rows": indices,
        }


class FromStep(Sampler[int]):
    """Every update from `first` on, in order: resuming is an offset, never a search."""

    def __init__(self, first: int, total: int) -> None:
        self._steps = range(first, total)

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)
