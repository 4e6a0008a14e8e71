"""Where tokens lie in a text, told by the bytes that each stands for: what a tokenizer's own offsets say, without their
cost. For tokenizers that cut UTF-8 into byte-level tokens, as those of most families do.
"""

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from tokenizers import Tokenizer, decoders, normalizers

from daemon.data.markers import Span


class Widths(dict[int, int]):
    """The bytes of each token; asked once for each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._normalizer = tokenizer.normalizer
        self._added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}

    def __missing__(self, token: int) -> int:
        if token in self._added:
            width = len(self._added[token].encode())
        else:  # one character stands for each byte
            width = len(self._tokenizer.id_to_token(token) or "")
        self[token] = width
        return width

    def places(self, text: str, ids: Sequence[int], spans: Sequence[Span]) -> list[Span] | None:
        """The tokens of each span of characters; None where they do not add up to the text."""
        ends = list(accumulate(map(self.__getitem__, ids)))
        is_ascii = text.isascii()
        if not ends or ends[-1] != (len(text) if is_ascii else len(text.encode())) or not self._is_kept(text):
            return None
        found = []
        for start, end in spans if is_ascii else _in_bytes(text, spans):
            first, last = bisect_right(ends, start), bisect_left(ends, end) + 1
            # An added token that the span begins in the middle of opens the turn: it is context.
            while first < last and ids[first] in self._added and (ends[first - 1] if first else 0) < start:
                first += 1
            found.append((first, last))
        return found

    def _is_kept(self, text: str) -> bool:
        """Whether the tokenizer cuts this text, not another form of it."""
        if self._normalizer is None:
            return True
        if isinstance(self._normalizer, normalizers.NFC):
            return unicodedata.is_normalized("NFC", text)
        return bool(self._normalizer.normalize_str(text) == text)


def widths_of(tokenizer: Tokenizer) -> Widths | None:
    """None for a tokenizer of another kind."""
    return Widths(tokenizer) if isinstance(tokenizer.decoder, decoders.ByteLevel) else None


def _in_bytes(text: str, spans: Sequence[Span]) -> Iterator[Span]:
    """The spans, which follow each other, in bytes of UTF-8."""
    done = place = 0
    for start, end in spans:
        first = place + len(text[done:start].encode())
        done, place = end, first + len(text[start:end].encode())
        yield first, place
