"""Batches from the token cache: which rows form an update is decided by the stream alone, collation is pure."""

import hashlib
from collections.abc import Iterable, Iterator
from enum import StrEnum
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
        self.ids = np.memmap(folder / "ids.bin", dtype="<i4", mode="r")
        self.mask = np.memmap(folder / "mask.bin", dtype="u1", mode="r")
        if len(self.offsets) < 2:
            raise BadData(f"The token cache {folder} holds no row.", "drop the file again, so that it is read anew")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (int32) and mask (uint8, 1 = trained) of one row, both of its length in tokens."""
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.ids[start:end], self.mask[start:end]

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

    def epoch(self, step: int) -> float:
        """How often all rows were seen after so many updates."""
        return min(step * self.update_rows, self.total_rows) / self.rows

    def update(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, row) pairs of update `step`, counted from 0; an update may reach into the next epoch."""
        first = step * self.update_rows
        positions = range(first, min(first + self.update_rows, self.total_rows))
        return [(p // self.rows, int(self._order(p // self.rows)[p % self.rows])) for p in positions]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            seed = derive_seed(self._seed, self._name, f"epoch {epoch}")
            # numpy's old generator: that of the new one may change with a release, and a file that goes on after an
            # upgrade would have rows twice and never.
            draw = np.random.RandomState([seed >> 32, seed % 2**32])
            self._orders[epoch] = draw.permutation(self.rows)
        return self._orders[epoch]


def derive_seed(seed: int, *parts: str) -> int:
    """A seed of 63 bits from the run's seed and what it is for."""
    digest = hashlib.sha256("\0".join([str(seed), *parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Layout(StrEnum):
    """How the rows of a micro-batch are laid out."""

    PADDED = "padded"  # a row a sequence, padded on the right, with an attention mask
    PACKED = "packed"  # several rows a sequence; positions restart with each, no attention across
    FLAT = "flat"  # all rows in one sequence, for attention kernels that take no other packing


def collate(rows: TokenRows, sequences: list[list[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """A micro-batch of sequences, each of one or more rows, padded on the right to the longest.

    Returns input_ids, position_ids and labels, each int64 of shape (sequences, tokens). Positions restart at each row
    and at the padding: by that alone attention stays within a row. A row's first token is never predicted.
    """
    lengths = [sum(len(rows.row(i)[0]) for i in indices) for indices in sequences]
    input_ids = torch.full((len(sequences), max(lengths)), pad_id, dtype=torch.int64)
    position_ids = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED)
    for place, indices in enumerate(sequences):
        start = 0
        for index in indices:
            ids, mask = rows.row(index)
            end = start + len(ids)
            tokens = torch.from_numpy(ids.astype(np.int64))
            input_ids[place, start:end] = tokens
            position_ids[place, start:end] = torch.arange(len(ids))
            trained = torch.from_numpy(mask.astype(bool))
            labels[place, start + 1 : end] = torch.where(trained, tokens, IGNORED)[1:]
            start = end
        position_ids[place, start:] = torch.arange(input_ids.shape[1] - start)
    return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}


def pad(rows: TokenRows, indices: list[int], pad_id: int) -> dict[str, torch.Tensor]:
    """A micro-batch of one row a sequence, with an attention mask: what every model understands.

    Returns input_ids, attention_mask and labels, each int64 of shape (rows, tokens).
    """
    batch = collate(rows, [[i] for i in indices], pad_id)
    lengths = torch.tensor([len(rows.row(i)[0]) for i in indices])
    mask = torch.arange(batch["input_ids"].shape[1])[None] < lengths[:, None]
    return {"input_ids": batch["input_ids"], "attention_mask": mask.long(), "labels": batch["labels"]}


def fill(lengths: list[int], capacity: int) -> list[list[int]]:
    """Places of `lengths` laid into as few sequences of at most `capacity` as first-fit-decreasing finds.

    A pure function: the same lengths give the same sequences.
    """
    sequences: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda p: (-lengths[p], p)):
        found = next((s for s, free in enumerate(room) if free >= lengths[place]), None)
        if found is None:
            sequences.append([])
            room.append(capacity)
            found = len(sequences) - 1
        sequences[found].append(place)
        room[found] -= lengths[place]
    return sequences


class Updates(Dataset[dict[str, Any]]):
    """Item `step` is one whole update: its rows, cut into micro-batches, and the number of its trained tokens.

    No micro-batch has more tokens than `micro_batch_rows` rows as long as the update's longest.
    """

    def __init__(
        self,
        rows: TokenRows,
        stream: Stream,
        micro_batch_rows: int,
        pad_id: int,
        layout: Layout = Layout.PADDED,
        left_out: Iterable[int] = (),  # lines of rows that are not trained; an update may be empty for it
    ) -> None:
        self.rows, self.stream, self.layout = rows, stream, layout
        self.micro_batch_rows = micro_batch_rows
        self._pad_id, self._left_out = pad_id, frozenset(left_out)

    def __len__(self) -> int:
        return self.stream.total_steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        indices = [row for _, row in self.stream.update(step) if int(self.rows.lines[row]) not in self._left_out]
        lengths = [len(self.rows.row(i)[0]) for i in indices]
        sequences = self._sequences(indices, lengths)
        return {
            "micro_batches": self._micro_batches(sequences),
            "trained_tokens": sum(self.rows.trained_tokens(i) for i in indices),
            "tokens": sum(lengths),
            "rows": indices,
            "example": sequences[0][0] if sequences else None,  # the row at the very beginning
        }

    def _sequences(self, indices: list[int], lengths: list[int]) -> list[list[int]]:
        """The update's rows, sequence by sequence."""
        if self.layout is Layout.PADDED or not indices:
            return [[i] for i in indices]
        # Longer sequences than the longest row would only make attention dearer, except to kernels for flat ones.
        capacity = max(lengths) * (self.micro_batch_rows if self.layout is Layout.FLAT else 1)
        return [[indices[place] for place in places] for places in fill(lengths, capacity)]

    def _micro_batches(self, sequences: list[list[int]]) -> list[dict[str, torch.Tensor]]:
        size = 1 if self.layout is Layout.FLAT else self.micro_batch_rows
        cuts = [sequences[c : c + size] for c in range(0, len(sequences), size)]
        if self.layout is Layout.PADDED:
            return [pad(self.rows, [indices[0] for indices in cut], self._pad_id) for cut in cuts]
        return [collate(self.rows, cut, self._pad_id) for cut in cuts]


class FromStep(Sampler[int]):
    """Every update from `first` on, in order: resuming is an offset, never a search."""

    def __init__(self, first: int, total: int) -> None:
        self._steps = range(first, total)

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)
