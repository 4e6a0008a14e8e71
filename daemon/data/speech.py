"""Where the assistant speaks in a rendered conversation, by what the template puts around it: learned by asking it."""

import re
from itertools import zip_longest
from typing import Any

from daemon.data.dialect import NAME, Dialect, probe
from daemon.data.formats import Message
from daemon.data.lines import BadRow
from daemon.data.markers import Markers, Span, any_of
from daemon.data.template import Template

_FIRST, _ANSWER, _SECOND, _LAST = (f"Kq7Z{name}W3xV" for name in ("first", "answer", "second", "last"))
TALK: list[Message] = [
    {"role": "user", "content": _FIRST},
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": _SECOND},
    {"role": "assistant", "content": _LAST},
]
_THOUGHT, _END_OF_THOUGHT = "<think>", "</think>"
_EMPTY_THOUGHT = re.compile(rf"\s*{_THOUGHT}\s*{_END_OF_THOUGHT}\n*")


def text_around(template: Template) -> str:
    """A small conversation as the template writes it; empty where it refuses one."""
    return _render(template, TALK) or ""


def common_start(*texts: str) -> str:
    """What all begin with."""
    first, last = min(texts), max(texts)
    return next((first[:i] for i, letter in enumerate(first) if letter != last[i : i + 1]), first)


def _render(
    template: Template, messages: list[Message], *, prompt: bool = False, options: dict[str, Any] | None = None
) -> str | None:
    try:
        return template.render(messages, None, add_generation_prompt=prompt, options=options or {})[0]
    except BadRow:
        return None


class Speech:
    """Finds turns in text in which no content holds a marker."""

    def __init__(self, template: Template, dialect: Dialect, markers: Markers) -> None:
        self._markers = markers
        self._any_marker = re.compile(f" *{markers.pattern.pattern}")
        text = text_around(template)
        plain = _header(template, markers, TALK, _SECOND, [(_FIRST, _ANSWER), (_SECOND, _LAST)])
        after_tools = _header_after_tools(template, dialect, markers) if dialect.writes_calls else ""
        self._closers = _closers(text, markers)
        stops = self._closers or _next_turns(template, dialect, markers)
        openers = {opener for header in (plain, after_tools) if (opener := _from_marker(header, markers))}
        self._opener = re.compile(any_of(openers))
        self._stop = re.compile(any_of(stops))
        self._is_known = bool(openers and stops)
        self._prompted = _prompted(template, plain, template.options) if _writes_thoughts(template) else ""
        self._silent = _prompted(template, plain, {"enable_thinking": False})
        before_answer = text.partition(_SECOND)[2].partition(_LAST)[0]
        self._inserts_empty_thoughts = _END_OF_THOUGHT in self._silent or _END_OF_THOUGHT in before_answer

    @property
    def have_ends(self) -> bool:
        """Whether the template writes a token that ends a turn."""
        return self._closers is None or bool(self._closers)

    def find(self, text: str) -> list[Span] | None:
        """Each assistant turn, from where it begins to the token that ends it; None where the template is one that
        separates turns by ordinary text.
        """
        if not self._is_known:
            return None
        spans = []
        opened = list(self._opener.finditer(text))
        for this, following in zip_longest(opened, opened[1:]):
            stopped = self._stop.search(text, this.end())
            end = stopped.start() if stopped else len(text)
            # Two results of tools, or two questions, may follow each other: the last one before an answer opens it.
            if following is None or following.start() >= end:
                spans.append((this.end(), stopped.end() if stopped and self._closers else end))
        return spans

    def close(self, text: str, span: Span) -> Span:
        """The span with the token that ends the turn, where that stands just behind."""
        start, end = span
        if self._closers is not None and not self._closers:
            return span
        tail = text[max(start, end - 100) : end].rstrip()
        if any(found.end() == len(tail) for found in self._any_marker.finditer(tail)):
            return span
        # Some templates put a space before the token that ends a turn.
        found = self._any_marker.match(text, end)
        return (start, found.end()) if found else span

    def without_prompt(self, text: str, span: Span) -> Span:
        """The span without what the template, not the assistant, begins a turn with: a thought that is empty, and the
        beginning of one where it stands in the prompt for generation.
        """
        start, end = span
        if self._inserts_empty_thoughts:
            if _END_OF_THOUGHT in self._silent and text.startswith(self._silent, start):
                return start + len(self._silent), end
            if empty := _EMPTY_THOUGHT.match(text, start, end):
                return empty.end(), end
        return (start + len(self._prompted), end) if text.startswith(self._prompted, start) else span

    def length_prompted(self, before: str) -> int:
        """How many characters at the end of `before` the prompt for generation adds to what begins every turn."""
        return len(self._prompted) if before.endswith(self._prompted) else 0


def _header(
    template: Template, markers: Markers, talk: list[Message], asked: str, between: list[tuple[str, str]]
) -> str:
    """What comes between a question and what the assistant writes, the same in every turn; "" where unknown."""
    text = _render(template, talk)
    prompt = _render(template, talk[:-1], prompt=True)
    if text is None or prompt is None or not all(text.count(word) for pair in between for word in pair):
        return ""
    glue = [text.partition(before)[2].partition(after)[0] for before, after in between]
    header = common_start(prompt.rpartition(asked)[2], *glue).partition(_THOUGHT)[0]
    if any(markers.pattern.search(one[len(header) :]) for one in glue):  # this template writes no prompt
        header = common_start(*glue).partition(_THOUGHT)[0]
    return header


def _header_after_tools(template: Template, dialect: Dialect, markers: Markers) -> str:
    talk = [*probe(dialect), {"role": "assistant", "content": _LAST}]
    result = talk[2]["content"]
    return _header(template, markers, talk, result, [(result, _LAST)])


def _from_marker(header: str, markers: Markers) -> str:
    """The part of the header that content cannot hold."""
    found = markers.pattern.search(header)
    return header[found.start() :] if found else ""


def _closers(text: str, markers: Markers) -> frozenset[str] | None:
    """The token that ends a turn; none where only the next turn's begin ends it; None where unknown."""
    if text.count(_LAST) != 1:
        return None
    found = markers.pattern.search(text.partition(_LAST)[2])
    return frozenset({found[0]} if found else ())


def _next_turns(template: Template, dialect: Dialect, markers: Markers) -> set[str]:
    """The tokens that begin the turn after an assistant's."""
    following = [(_render(template, TALK) or "").partition(_ANSWER)[2].partition(_SECOND)[0]]
    if dialect.writes_calls:
        talk = probe(dialect)
        following.append((_render(template, talk) or "").partition(NAME)[2].partition(talk[2]["content"])[0])
    return {found[0] for text in following if (found := markers.pattern.search(text))}


def _writes_thoughts(template: Template) -> bool:
    thoughtful = {**TALK[-1], "reasoning_content": "Kq7Zthought"}
    text = _render(template, [*TALK[:-1], thoughtful]) or ""
    return re.search(rf"{_THOUGHT}\s*Kq7Zthought", text) is not None


def _prompted(template: Template, header: str, options: dict[str, Any]) -> str:
    """What the prompt for generation adds to the header."""
    tail = (_render(template, TALK[:3], prompt=True, options=options) or "").rpartition(_SECOND)[2]
    return tail.partition(header)[2] if header else ""
