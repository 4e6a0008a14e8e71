"""Places told by the widths of tokens are those that the tokenizer's own offsets tell."""

from random import Random

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers

from daemon.data.encoding import Encoder
from daemon.data.markers import Span
from daemon.data.widths import Widths, widths_of
from tests.helpers_families import family_tokenizer

PIECES = [
    "Paris",
    " is",
    "é",
    "e\u0301",
    "日本",
    "🌍",
    "\n",
    "\n\n",
    "  ",
    "\u00a0",
    "<|im_end|>",
    "<think>",
    "1+1",
    "\u2028",
]


def the_tokenizer(normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    tokenizer = Tokenizer.from_str(family_tokenizer("qwen3").to_str())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def widths(tokenizer: Tokenizer) -> Widths:
    found = widths_of(tokenizer)
    assert found is not None
    return found


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def some_spans(draw: Random, length: int) -> list[Span]:
    cuts = sorted(draw.sample(range(length + 1), k=min(length + 1, 2 * draw.randint(1, 3))))
    return list(zip(cuts[::2], cuts[1::2], strict=False))


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["no normalizer", "NFC"])
def test_any_span_of_any_text_has_the_same_tokens_as_by_offsets(normalizer: normalizers.Normalizer | None) -> None:
    tokenizer, draw, told = the_tokenizer(normalizer), Random(0), 0
    by_width, by_offset = widths(tokenizer), Encoder(tokenizer, None)
    for _ in range(2000):
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 12)))
        spans = some_spans(draw, len(text))
        encoding = tokenizer.encode(text, add_special_tokens=False)
        found = by_width.places(text, encoding.ids, spans)
        if found is not None:
            told += 1
            assert found == by_offset._by_offsets(encoding.ids, encoding.offsets, spans), (text, spans)
        else:
            assert normalizer is not None and "e\u0301" in text
    assert told > 500


def test_a_text_that_the_tokenizer_changes_is_not_told_by_widths() -> None:
    tokenizer = the_tokenizer(normalizers.NFC())
    grown = "\u0958"  # one letter of three bytes that NFC writes as two of three
    for text in ("e\u0301", grown):
        assert widths(tokenizer).places(text, ids_of(tokenizer, text), [(0, 1)]) is None
    other = the_tokenizer(normalizers.Lowercase())  # as many bytes as before
    assert widths(other).places("ABC", ids_of(other, "ABC"), [(0, 1)]) is None
    assert widths(other).places("abc", ids_of(other, "abc"), [(0, 3)]) == [(0, len(ids_of(other, "abc")))]


def test_a_token_that_swallows_white_space_is_not_told_by_widths() -> None:
    tokenizer = the_tokenizer()
    tokenizer.add_special_tokens([AddedToken("<|greedy|>", special=True, normalized=False, rstrip=True)])
    text = "<|greedy|>  Paris"
    assert widths(tokenizer).places(text, ids_of(tokenizer, text), [(12, 17)]) is None


def test_a_tokenizer_that_is_not_byte_level_has_no_widths() -> None:
    assert widths_of(family_tokenizer("gemma3")) is None
    assert widths_of(family_tokenizer("mistral_v3")) is None
