"""Text to tokens and masks, with the model's own tokenizer."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import Tokenizer

from daemon.data.markers import Span

_NEWLINE = "\n"
_FEW_SPANS = 64  # looking one up goes through the tokens from the beginning


@dataclass(frozen=True)
class Draft:
    """A row as text. `spans` are the characters to be trained; None = all of a plain text."""

    text: str
    spans: list[Span] | None
    quotes: list[Span] = field(default_factory=list)  # markers that the data quotes: encoded as ordinary text
    notes: frozenset[str] = frozenset()  # what is to be counted and said of the row


@dataclass(frozen=True)
class Encoded:
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
        self.can_be_text = cache(self._can_be_text)

    def encode(self, drafts: Sequence[Draft]) -> list[Encoded]:
        """Tokens and masks, in the same order."""
        # The template has written the special tokens of a chat; those of a plain text are the tokenizer's part.
        chats = iter(self._batch([d.text for d in drafts if d.spans is not None and not d.quotes], False))
        texts = iter(self._batch([d.text for d in drafts if d.spans is None], True))
        return [self._encoded(draft, chats, texts) for draft in drafts]

    def _encoded(self, draft: Draft, chats: Any, texts: Any) -> Encoded:
        if draft.spans is None:
            return self._whole(next(texts).ids)
        if draft.quotes:
            return self._in_pieces(draft, draft.spans)
        return self._chat(next(chats), draft)

    def _chat(self, encoding: Any, draft: Draft) -> Encoded:
        ids: list[int] = encoding.ids
        spans = draft.spans or []
        places = [self._tokens_of(encoding, ids, span, len(draft.text)) for span in spans[:_FEW_SPANS]]
        if len(spans) > _FEW_SPANS or None in places:
            return self._masked(ids, encoding.offsets, spans)
        mask = bytearray(len(ids))
        for first, last in filter(None, places):
            mask[first:last] = b"\1" * (last - first)
        return Encoded(ids, bytes(mask))

    def _tokens_of(self, encoding: Any, ids: list[int], span: Span, length: int) -> Span | None:
        """Like `_masked` for one span, without a list of all offsets; None where a character has no token."""
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

    def _batch(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
        return self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens) if texts else []

    def _masked(self, ids: list[int], offsets: list[Span], spans: list[Span]) -> Encoded:
        """A token is trained where any of its characters is."""
        mask = bytearray(len(ids))
        for start, end in spans:
            first = bisect_right(offsets, start, key=lambda offset: offset[1])
            last = bisect_left(offsets, end, key=lambda offset: offset[0])
            # Some special tokens swallow the white space behind them; the one that opens the turn is still context.
            while first < last and offsets[first][0] < start and ids[first] in self._added:
                first += 1
            mask[first:last] = b"\1" * (last - first)
        return Encoded(ids, bytes(mask))

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
        return self._masked(ids, offsets, spans)

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
