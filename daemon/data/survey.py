"""One pass over the lines of data files: good rows into a token cache, all others listed with their reason."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import floor
from pathlib import Path

from daemon.core.config import Settings
from daemon.core.records import RejectedRow
from daemon.data import formats
from daemon.data.crew import processes_for, read_all
from daemon.data.digests import Digests
from daemon.data.lines import BadRow, Line, Unreadable, UnusableFile
from daemon.data.reading import Read, Reader, Reading
from daemon.data.render import Renderer
from daemon.data.sources import Source
from daemon.data.tokens import ID_BYTES, TokensWriter

# Read together: enough for speed, little enough for memory.
BATCH_ROWS = 256
BATCH_BYTES = 1 << 19

IN_HOLDOUT = "the row is in the holdout"

Reject = Callable[[RejectedRow], None]


@dataclass
class Counts:
    """What a pass found."""

    rows: int = 0  # that are not blank
    bad: int = 0
    too_long: int = 0
    in_holdout: int = 0
    duplicates: int = 0
    preferences: int = 0  # good rows that cannot be trained yet
    masked: int = 0  # bad because no token of them would be trained
    with_headers: int = 0  # bad because a user's or system's header would be trained
    first_header_line: int = 0
    chat_tokens: int = 0
    chat_trained_tokens: int = 0
    thinking: int = 0  # good rows with reasoning
    longest: int = 0  # tokens, before any cut
    lengths: Counter[int] = field(default_factory=Counter)  # good rows by the power of two that they fit into
    unit: str = "line"  # what is numbered
    unusable: UnusableFile | None = None  # why it was not read to its end
    formats: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)  # rows by what was noted on them
    too_long_lengths: "array[int]" = field(default_factory=lambda: array("Q"))
    first_bad: str | None = None  # in words
    cut_off: bool = False  # the last line is not whole

    @property
    def format(self) -> str | None:
        return ", ".join(name for name, _ in self.formats.most_common()) or None

    def fitting_length(self, percent: float) -> int:
        """The smallest max_length at which at most this share of the rows would be too long."""
        lengths = sorted(self.too_long_lengths, reverse=True)
        return lengths[min(floor(self.rows * percent / 100), len(lengths) - 1)]


class Survey:
    """Reads files one after the other; `counts` is complete after `finish`."""

    def __init__(
        self, renderer: Renderer, settings: Settings, writer: TokensWriter, reject: Reject, holdout: set[bytes]
    ) -> None:
        self._reader = Reader(renderer, settings)
        self._settings = settings
        self._writer = writer
        self._reject_row = reject
        self._holdout = holdout
        self.seen = Digests()  # what the good rows train
        self.counts = Counts()

    def read(self, path: Path) -> Source:
        """All rows of one file; the answer knows its size and hash."""
        source = Source(path, self._settings)
        self.counts.unit = source.unit
        try:
            for found in read_all(self._reader, batches(source), processes_for(path.stat().st_size)):
                self._settle(found)
        except UnusableFile as unusable:
            self.counts.unusable = unusable
        return source

    def _settle(self, batch: list[Read]) -> None:
        for line, found in batch:
            self.counts.rows += 1
            try:
                if isinstance(found, BadRow):
                    raise found
                self._settle_row(line, found)
            except formats.Preference:
                self.counts.preferences += 1
            except BadRow as bad:
                self._count_bad(line, bad)

    def _settle_row(self, line: Line, row: Reading) -> None:
        if row.digest in self._holdout:
            self.counts.in_holdout += 1
            self._reject(line, IN_HOLDOUT, "nothing to do: it measures the model, so it is not trained")
            return
        self._check_mask(line, row)
        self.counts.longest = max(self.counts.longest, row.length)
        length = self._fitting(line, row)
        if length:
            mask = row.mask[:length]
            self._count_good(row, mask)
            self._writer.append(row.ids[: ID_BYTES * length], mask, line.number, row.digest)

    def _check_mask(self, line: Line, row: Reading) -> None:
        if row.fault == "masked":
            self.counts.masked += 1
            raise BadRow("the row has no token to be trained", "fill in the answer, or remove the row")
        if row.fault == "header":
            self.counts.with_headers += 1
            self.counts.first_header_line = self.counts.first_header_line or line.number
            raise BadRow(
                "the beginning of a user's or system's turn would be trained",
                "remove the template's own markers from the answer, or correct {% generation %} in the chat template",
            )

    def _count_good(self, row: Reading, mask: bytes) -> None:
        counts, length = self.counts, len(mask)
        counts.duplicates += not self.seen.add(row.digest)
        counts.notes.update(row.notes)
        counts.formats[row.format] += 1
        counts.lengths[1 << (length - 1).bit_length()] += 1
        counts.thinking += row.thinks
        if row.is_chat:
            counts.chat_tokens += length
            counts.chat_trained_tokens += mask.count(1)

    def _fitting(self, line: Line, row: Reading) -> int:
        """How many of the row's tokens are kept, at most max_length; 0 where it is left out."""
        limit, length = self._settings.max_length, row.length
        if length <= limit:
            return length
        self.counts.too_long += 1
        self.counts.too_long_lengths.append(length)
        reason, fix = f"the row has {length} tokens, max_length is {limit}", "shorten it, or raise max_length"
        if self._settings.excess_length == "reject":
            raise BadRow(reason, fix)
        if self._settings.excess_length == "truncate" and 1 in row.mask[1:limit]:
            return limit
        self._reject(line, reason, fix)
        return 0

    def _count_bad(self, line: Line, bad: BadRow) -> None:
        reason, fix = bad.reason, bad.fix
        if not line.ended and isinstance(bad, Unreadable):
            self.counts.cut_off = True
            reason, fix = f"the file seems cut off: its last line is {reason}", "copy the file again, whole"
        self.counts.bad += 1
        self.counts.first_bad = self.counts.first_bad or f"{self.counts.unit} {line.number}: {reason}"
        self._reject(line, reason, fix)

    def _reject(self, line: Line, reason: str, fix: str) -> None:
        self._reject_row(RejectedRow(line=line.number, reason=reason, fix=fix, row=line.shown))


def batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    batch: list[Line] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line.data)
        if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
