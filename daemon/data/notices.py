"""What is noted on rows while they are rendered, and the report's warnings that come of it."""

import re
from collections.abc import Iterator, Mapping

from daemon.data.formats import Message, Row

REASONING = "reasoning"  # a trained turn has reasoning
LEFT_OUT = "reasoning left out"  # and the template does not write it
THINKING_IGNORED = "thinking ignored"  # the template does not ask for enable_thinking
QUOTES = "quotes"  # the row quotes the model's own markers
ENDLESS = "endless"  # the template writes no token that ends an assistant's turn
_BLOCK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_NAMES = ("reasoning_content", "thinking", "reasoning")


def notes_on_reasoning(row: Row, text: str) -> set[str]:
    """Of a row that was rendered as `text`."""
    if not row.thinks:
        return set()
    messages = row.messages or []
    thoughts = [thought for turn in row.trained_turns() for thought in _thoughts(messages[turn])]
    if not thoughts:
        return set()
    return {REASONING} if all(thought in text for thought in thoughts) else {REASONING, LEFT_OUT}


def _thoughts(message: Message) -> Iterator[str]:
    content = message.get("content", "")
    inside = _BLOCK.findall(content) if "</think>" in content else []
    for thought in [*inside, *(message.get(name) for name in _NAMES)]:
        if isinstance(thought, str) and thought.strip():
            yield thought.strip()


def warnings(notes: Mapping[str, int], enable_thinking: bool | None) -> list[str]:
    """`notes` counts rows by what was noted on them."""
    found = []
    if notes[LEFT_OUT]:
        found.append(
            f"{notes[LEFT_OUT]} rows have reasoning that the chat template leaves out of a turn that is trained; where "
            "it keeps only that of the last turn, give one row for each turn"
        )
    if enable_thinking is False and notes[REASONING]:
        found.append(f"enable_thinking is false, and {notes[REASONING]} rows have reasoning")
    if enable_thinking is not None and notes[THINKING_IGNORED]:
        found.append("enable_thinking has no effect: the chat template does not ask for it")
    if notes[QUOTES]:
        found.append(f"{notes[QUOTES]} rows quote the model's own markers; there they are trained as ordinary text")
    if notes[ENDLESS]:
        found.append(
            "the chat template writes no token that ends the assistant's turn: where to stop is not learned here"
        )
    return found
