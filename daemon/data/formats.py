"""A row of a data file, checked and turned into chat messages or plain text, whatever format it came in."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from daemon.data import turns
from daemon.data.lines import BadRow, kind_of, parse

Message = turns.Message
DIGEST_BYTES = 16
KNOWN_COLUMNS = (
    "use one of: messages; conversations; instruction, input and output; prompt and completion; "
    "prompt and response; text; or say with column_map which of your columns is which"
)


class Preference(BadRow):
    """A good row of a kind that cannot be trained yet: it says which of two answers is better."""

    def __init__(self) -> None:
        super().__init__(
            "preference rows cannot be trained yet", "give the good answer alone, as prompt and completion"
        )


@dataclass(frozen=True)
class Row:
    """A good row: either `messages` (and perhaps `tools`) or `text`. A turn not to be trained has `train: False`."""

    format: str
    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None
    text: str | None = None

    @property
    def digest(self) -> bytes:
        """Names what is trained: the same for the same content in another format or order of keys."""
        content = {"text": self.text} if self.messages is None else {"messages": self.messages, "tools": self.tools}
        canonical = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
        return hashlib.blake2b(canonical, digest_size=DIGEST_BYTES).digest()

    @property
    def thinks(self) -> bool:
        """Whether reasoning is part of what is trained."""
        return "<think>" in (self.text or "") or any(turns.thinks(message) for message in self.messages or [])

    def trained_turns(self) -> list[int]:
        """The positions of the assistant turns to be trained."""
        return [
            i for i, turn in enumerate(self.messages or []) if turn["role"] == "assistant" and turn.get("train", True)
        ]


def read(line: bytes, column_map: Mapping[str, str] | None = None) -> Row:
    """The row in one line. Raises BadRow."""
    return normalise(map_columns(parse(line), column_map or {}))


def map_columns(row: dict[str, Any], column_map: Mapping[str, str]) -> dict[str, Any]:
    """The row with {our column: their column} applied; a column that is not there changes nothing."""
    found = {ours: theirs for ours, theirs in column_map.items() if theirs in row}
    if not found:
        return row
    taken = set(found.values())
    kept = {name: value for name, value in row.items() if name not in taken}
    return {**kept, **{ours: row[theirs] for ours, theirs in found.items()}}


# ---- formats ----


def normalise(row: dict[str, Any]) -> Row:
    """The row as messages or text, with its format found by its columns. Raises BadRow, Preference for such a row."""
    given = {key for key, value in row.items() if value is not None}
    for name, columns, convert in _FORMATS:
        if columns <= given:
            return convert(name, row)
    # What steers a terminal is spelled out.
    found = ", ".join(name if name.isprintable() else repr(name) for name in sorted(given)) or "none"
    raise BadRow(f"no known format has these columns: {found[:200]}", KNOWN_COLUMNS)


def is_known(row: dict[str, Any]) -> bool:
    """Whether an object has the columns of a row."""
    return any(columns <= row.keys() for _, columns, _ in _FORMATS)


def _from_preference(_: str, row: dict[str, Any]) -> Row:
    """Checked for its shape; a prompt may also be the beginning of both answers, where they are messages."""
    for column in ("chosen", "rejected", "prompt"):
        value = row.get(column)
        if isinstance(value, list):
            for number, turn in enumerate(value, 1):
                turns.read_turn(number, turn)
        elif value is not None or column != "prompt":
            _text(row, column)
    if isinstance(row["chosen"], list) != isinstance(row["rejected"], list):
        raise BadRow("chosen and rejected are not of one kind", "write both as text, or both as messages")
    if row["chosen"] == row["rejected"]:
        raise BadRow("chosen and rejected are the same", "remove the row: it says nothing")
    if row.get("prompt") is None and not isinstance(row["chosen"], list):
        raise BadRow("the prompt is missing", "add prompt, or write chosen and rejected as messages")
    raise Preference


def _from_messages(name: str, row: dict[str, Any]) -> Row:
    return _chat(name, _list(row, "messages"), row)


def _from_conversations(name: str, row: dict[str, Any]) -> Row:
    given = [turns.from_sharegpt(number, turn) for number, turn in enumerate(_list(row, "conversations"), 1)]
    return _chat(name, [*_system(row), *given], row)


def _from_instruction(name: str, row: dict[str, Any]) -> Row:
    question, more = _text(row, "instruction"), _text(row, "input") if row.get("input") is not None else ""
    asked = f"{question}\n\n{more}" if question.strip() and more.strip() else question if question.strip() else more
    earlier = [turn for pair in _history(row) for turn in pair]
    return _chat(name, [*_system(row), *earlier, _user(asked), _assistant(_text(row, "output"))], row)


def _history(row: dict[str, Any]) -> list[tuple[Message, Message]]:
    """The earlier questions and answers, which are trained too."""
    pairs = _list(row, "history") if row.get("history") else []
    for number, pair in enumerate(pairs, 1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise BadRow(f"entry {number} of history is not a question and its answer", 'write it as ["…", "…"]')
    return [(_user(question), _assistant(answer)) for question, answer in pairs]


def _from_prompt(name: str, row: dict[str, Any]) -> Row:
    answer = name.split("/")[1]
    if isinstance(row.get("label"), bool):
        raise Preference  # an answer with a thumb up or down: a bad one must not be trained as a good one
    asked, answered = row["prompt"], row[answer]
    # What stands in the prompt is context, its assistant turns too.
    context = (
        [{**t, "train": False} if _is_assistant(t) else t for t in asked]
        if isinstance(asked, list)
        else [_user(_text(row, "prompt"))]
    )
    said = answered if isinstance(answered, list) else [_assistant(_text(row, answer))]
    return _chat(name, [*_system(row), *context, *said], row)


def _from_text(name: str, row: dict[str, Any]) -> Row:
    text = _text(row, "text")
    if not text.strip():
        raise BadRow("the text is empty", "fill in text, or remove the row")
    return Row(name, text=text)


_FORMATS: tuple[tuple[str, frozenset[str], Callable[[str, dict[str, Any]], Row]], ...] = (
    ("prompt/chosen/rejected", frozenset({"chosen", "rejected"}), _from_preference),
    ("messages", frozenset({"messages"}), _from_messages),
    ("conversations", frozenset({"conversations"}), _from_conversations),
    ("instruction/input/output", frozenset({"instruction", "output"}), _from_instruction),
    ("prompt/completion", frozenset({"prompt", "completion"}), _from_prompt),
    ("prompt/response", frozenset({"prompt", "response"}), _from_prompt),
    ("text", frozenset({"text"}), _from_text),
)


# ---- chats ----


def _chat(name: str, given: list[Any], row: dict[str, Any]) -> Row:
    messages = [turns.read_turn(number, turn) for number, turn in enumerate(given, 1)]
    turns.check_order(messages)
    chat = Row(name, messages, _tools(row))
    trained = chat.trained_turns()
    if not trained:
        raise BadRow("no assistant turn is to be trained", "every one has train: false; remove it from one, or the row")
    if not any(turns.says_something(messages[turn]) for turn in trained):
        raise BadRow("the assistant's text is empty", "fill in the answer, or remove the row")
    return chat


def _is_assistant(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") == "assistant"


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _system(row: dict[str, Any]) -> list[Message]:
    return [{"role": "system", "content": _text(row, "system")}] if row.get("system") else []


# ---- columns ----


def _tools(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    tools = row.get("tools")
    if not tools:
        return None
    if isinstance(tools, str):  # tables have no lists of objects that differ, so they hold them as JSON
        try:
            tools = orjson.loads(tools)
        except orjson.JSONDecodeError:
            tools = None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("tools is not a list of objects", "write the tools as a list of JSON schemas")
    return tools


def _list(row: dict[str, Any], column: str) -> list[Any]:
    value = row[column]
    if not isinstance(value, list):
        raise BadRow(f"{column} is {kind_of(value)}, not a list", f"write {column} as a list of turns")
    return value


def _text(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise BadRow(f"{column} is {kind_of(value)}, not text", f"put {column} in quotes")
    return value
