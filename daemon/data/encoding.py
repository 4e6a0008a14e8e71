"""Text to tokens and masks, with the model's own tokenizer."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from daemon.data.markers import Span
from daemon.data.widths import widths_of

_NEWLINE = "\n"
PIECE_CHARACTERS = 1 << 16  # of a long text, tokenised at once
_FEW_SPANS = 64  # looking one up goes through the tokens from the beginning


@dataclass(frozen=True)
class Draft:
    """A row as text. `spans` are the characters to be trained; None = all of a plain text."""

    text: str
    spans: list[Span] | None
    quotes: list[Span] = field(default_factory=list)  # markers that the data quotes: encoded as ordinary text
    notes: frozenset[str] = frozenset()  # what is to be counted and said of the row


class Encoded(NamedTuple):
    """A row as tokens; `mask` has a byte for each, 1 = trained."""

    ids: Sequence[int]
    mask: bytes


class Encoder:
    """Encodes drafts as transformers does: quoted markers as with sanitize_control_tokens."""

    def __init__(self, tokenizer: Tokenizer, eos: int | None) -> None:
        self._tokenizer = tokenizer
        self._eos = eos
        self._added = frozenset(tokenizer.get_added_tokens_decoder())
        self._newline = tokenizer.encode(_NEWLINE, add_special_tokens=False).ids
        self._widths = widths_of(tokenizer)
        self.can_be_text = cache(self._can_be_text)

    def encode(self, drafts: Sequence[Draft]) -> list[Encoded]:
        """Tokens and masks, in the same order."""
        # The template has written the special tokens of a chat; those of a plain text are the tokenizer's part.
        chats = iter(self._chats([d for d in drafts if d.spans is not None and not d.quotes]))
        texts = iter(self._batch([d.text for d in drafts if d.spans is None], add_special_tokens=True))
        return [self._encoded(draft, chats, texts) for draft in drafts]

    def beginning(self, draft: Draft, tokens: int) -> tuple[Draft, int] | None:
        """Of a draft of far more tokens than these: its beginning, which has more too, and how many there are in all,
        give or take one for each piece; None for any other draft. A text tokenised whole takes 300 times its size.
        """
        text, total, end = draft.text, 0, 0
        if len(text) <= PIECE_CHARACTERS:
            return None
        for start in range(0, len(text), PIECE_CHARACTERS):
            piece = text[start : start + PIECE_CHARACTERS]
            total += len(self._tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0].ids)
            if not end and total > 2 * tokens:
                end = start + PIECE_CHARACTERS
        if not end or end >= len(text):
            return None
        spans = None if draft.spans is None else [(a, min(b, end)) for a, b in draft.spans if a < end]
        return Draft(text[:end], spans, [(a, b) for a, b in draft.quotes if b <= end], draft.notes), total

    def _encoded(self, draft: Draft, chats: Iterator[Encoded], texts: Iterator[Any]) -> Encoded:
        if draft.spans is None:
            return self._whole(next(texts).ids)
        return self._in_pieces(draft, draft.spans) if draft.quotes else next(chats)

    def _chats(self, drafts: Sequence[Draft]) -> Iterator[Encoded]:
        encodings = self._batch([d.text for d in drafts], add_special_tokens=False, offsets=self._widths is None)
        for draft, encoding in zip(drafts, encodings, strict=True):
            ids, spans = encoding.ids, draft.spans or []
            places = self._widths.places(draft.text, ids, spans) if self._widths is not None else None
            yield self._chat(encoding, ids, draft.text, spans) if places is None else _trained(ids, places)

    def _chat(self, encoding: Any, ids: list[int], text: str, spans: list[Span]) -> Encoded:
        if self._widths is not None:  # it was made without offsets
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        found = [self._tokens_of(encoding, ids, span, len(text)) for span in spans[:_FEW_SPANS]]
        places = [place for place in found if place is not None]
        return _trained(ids, places if len(places) == len(spans) else self._by_offsets(ids, encoding.offsets, spans))

    def _tokens_of(self, encoding: Any, ids: list[int], span: Span, length: int) -> Span | None:
        """Like `_by_offsets` for one span, without a list of all offsets; None where a character has no token."""
        start, end = span
        first = encoding.char_to_token(start)
        last = encoding.char_to_token(end) if end < length else len(ids)
        if first is None or last is None:
            return None
        if last < len(ids) and encoding.token_to_chars(last)[0] < end:
            last += 1
        while first < last and ids[first] in self._added and encoding.token_to_chars(first)[0] < start:
            first += 1
        return first, last

    def _batch(self, texts: list[str], *, add_special_tokens: bool, offsets: bool = False) -> list[Any]:
        encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        return encode(texts, add_special_tokens=add_special_tokens) if texts else []

    def _by_offsets(self, ids: list[int], offsets: list[Span], spans: list[Span]) -> list[Span]:
        """The tokens of each span: those that hold any of its characters."""
        places = []
        for start, end in spans:
            first = bisect_right(offsets, start, key=lambda offset: offset[1])
            last = bisect_left(offsets, end, key=lambda offset: offset[0])
            # Some special tokens swallow the white space behind them; the one that opens the turn is still context.
            while first < last and offsets[first][0] < start and ids[first] in self._added:
                first += 1
            places.append((first, last))
        return places

    def _whole(self, ids: list[int]) -> Encoded:
        if self._eos is not None and ids[-1:] != [self._eos]:
            ids = [*ids, self._eos]
        return Encoded(ids, b"\1" * len(ids))

    # ---- rows that quote markers ----

    def _in_pieces(self, draft: Draft, spans: list[Span]) -> Encoded:
        ids: list[int] = []
        offsets: list[Span] = []
        done = 0
        for start, end in [*draft.quotes, (len(draft.text), len(draft.text))]:
            for place, text, is_quote in ((done, draft.text[done:start], False), (start, draft.text[start:end], True)):
                found, where = self._as_text(text) if is_quote else self._piece(text, place == 0)
                ids += found
                offsets += [(a + place, b + place) for a, b in where]
            done = end
        return _trained(ids, self._by_offsets(ids, offsets, spans))

    def _piece(self, text: str, is_first: bool) -> tuple[list[int], list[Span]]:
        """One piece of a longer text. Behind a newline: at a text's beginning some tokenizers add a space."""
        if not text:
            return [], []
        if not is_first:
            encoding = self._tokenizer.encode(_NEWLINE + text, add_special_tokens=False)
            size = len(self._newline)
            if encoding.ids[:size] == self._newline:
                return encoding.ids[size:], [(a - 1, b - 1) for a, b in encoding.offsets[size:]]
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def _as_text(self, marker: str) -> tuple[list[int], list[Span]]:
        if not marker:
            return [], []
        self._tokenizer.encode_special_tokens = True
        try:
            ids, offsets = self._piece(marker, False)
        finally:
            self._tokenizer.encode_special_tokens = False
        if self._tokenizer.token_to_id(marker) not in ids:
            return ids, offsets
        # An added token that is not marked as special is found all the same, unless it comes in two pieces.
        (one, before), (other, after) = self._piece(marker[0], False), self._piece(marker[1:], False)
        return one + other, before + [(a + 1, b + 1) for a, b in after]

    def _can_be_text(self, marker: str) -> bool:
        """Whether the tokenizer has other tokens than the marker's own to write it."""
        return self._tokenizer.token_to_id(marker) not in self._as_text(marker)[0]


def _trained(ids: list[int], places: list[Span]) -> Encoded:
    """Tokens with the mask that trains those in the places."""
    mask = bytearray(len(ids))
    for first, last in places:
        mask[first:last] = b"\1" * (last - first)
    return Encoded(ids, bytes(mask))
