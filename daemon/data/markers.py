"""Markers: the tokens that give a chat its structure. Where the data quotes them, they are ordinary text."""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer

from daemon.data.formats import Message
from daemon.data.lines import BadRow

Span = tuple[int, int]  # characters, the end excluded
# Tags that assistants write themselves, and data therefore holds on purpose.
_CONTENT_TAGS = ("think", "tool_call", "tool_response", "arg_key", "arg_value", "tools")
_NOT_MARKERS = {f"{opening}{tag}>" for tag in _CONTENT_TAGS for opening in ("<", "</")}
_LAST_STAND_IN = 0x10FFFD  # the end of the last plane for private use


class Markers:
    """The tokenizer's special tokens, and those with which the chat template separates turns."""

    def __init__(self, tokenizer: Tokenizer, template_text: str) -> None:
        """`template_text` is what the template wrote around plain turns."""
        added = tokenizer.get_added_tokens_decoder().values()
        self.tokens = sorted(
            token.content
            for token in added
            if (token.special or token.content in template_text)
            and token.content.strip()
            and token.content not in _NOT_MARKERS
        )
        self._first = _LAST_STAND_IN - len(self.tokens)
        self._stand_ins = {token: chr(self._first + i) for i, token in enumerate(self.tokens)}
        self.pattern = re.compile(any_of(self.tokens))
        self._stand_in = re.compile(f"[{chr(self._first)}-{chr(_LAST_STAND_IN)}]")
        # What JSON with ensure_ascii makes of a stand-in.
        self._escaped = re.compile(r"\\udbf[ef]\\ud", re.IGNORECASE)

    def quoted_in(self, value: Any) -> bool:
        """Whether a text anywhere in the value holds a marker."""
        if isinstance(value, str):
            return self.pattern.search(value) is not None
        if isinstance(value, dict):
            return any(self.quoted_in(key) or self.quoted_in(inner) for key, inner in value.items())
        return isinstance(value, list) and any(self.quoted_in(inner) for inner in value)

    def hide(self, messages: list[Message], tools: Any) -> tuple[list[Message], Any]:
        """The same turns and tools with one private character for each quoted marker. Raises BadRow."""
        turns = [{key: self._hidden(value) for key, value in message.items()} for message in messages]
        return turns, self._hidden(tools)

    def _hidden(self, value: Any) -> Any:
        if isinstance(value, str):
            if found := self._stand_in.search(value):
                raise BadRow(f"the text holds the private character U+{ord(found[0]):X}", "remove it")
            return self.pattern.sub(lambda marker: self._stand_ins[marker[0]], value)
        if isinstance(value, dict):
            return {self._hidden(key): self._hidden(inner) for key, inner in value.items()}
        return [self._hidden(inner) for inner in value] if isinstance(value, list) else value

    def restore(self, text: str, spans: list[Span]) -> tuple[str, list[Span], list[Span]]:
        """The rendered text with its quoted markers in words again, the spans in it, and where the quotes are."""
        if self._escaped.search(text):
            raise BadRow("the row quotes the model's own markers where the template escapes them", "remove them")
        pieces, quotes, moved, done, grown = [], [], [0] * (len(text) + 1), 0, 0
        for found in self._stand_in.finditer(text):
            token = self.tokens[ord(found[0]) - self._first]
            moved[done : found.start() + 1] = [grown] * (found.start() + 1 - done)
            pieces += [text[done : found.start()], token]
            quotes.append((found.start() + grown, found.start() + grown + len(token)))
            grown += len(token) - 1
            done = found.end()
        moved[done:] = [grown] * (len(text) + 1 - done)
        whole = "".join([*pieces, text[done:]])
        return whole, [(start + moved[start], end + moved[end]) for start, end in spans], quotes


def any_of(words: Iterable[str]) -> str:
    """A pattern for any of the words, the longest first, that looks at no character twice: tokenizers have thousands
    of special tokens, and hostile text is full of their beginnings.
    """
    sorted_words = sorted(set(words))
    return _trie(sorted_words) if sorted_words else "(?!)"


def _trie(words: list[str]) -> str:
    optional, rest = words[0] == "", [word for word in words if word]
    branches = list(_branches(rest))
    joined = f"(?:{'|'.join(branches)})" if optional or len(branches) > 1 else branches[0]
    return joined + ("?" if optional else "")


def _branches(words: list[str]) -> Iterator[str]:
    for first, group in groupby(words, key=lambda word: word[0]):
        tails = [word[1:] for word in group]
        yield re.escape(first) + (_trie(tails) if tails != [""] else "")
