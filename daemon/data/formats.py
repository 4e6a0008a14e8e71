"""A line of a data file, checked and turned into chat messages or plain text, whatever format it came in."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson

from daemon.data.lines import BadRow, kind_of, parse

Message = dict[str, Any]
DIGEST_BYTES = 16

# Which role may follow which; None is the beginning of a row.
FOLLOWERS: dict[str | None, tuple[str, ...]] = {
    None: ("system", "developer", "user"),
    "system": ("user",),
    "developer": ("user",),
    "user": ("user", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("tool", "user", "assistant"),
}
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
KNOWN_COLUMNS = (
    "use one of: messages; conversations; instruction, input and output; prompt and completion; "
    "prompt and response; text"
)


@dataclass(frozen=True)
class Row:
    """A good row: either `messages` (and perhaps `tools`) or `text`. A turn not to be trained has `train: False`."""

    format: str
    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None
    text: str | None = None

    @cached_property
    def digest(self) -> bytes:
        """Names what is trained: the same for the same content in another format or order of keys."""
        content = {"text": self.text} if self.messages is None else {"messages": self.messages, "tools": self.tools}
        canonical = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
        return hashlib.blake2b(canonical, digest_size=DIGEST_BYTES).digest()

    def trained_turns(self) -> list[int]:
        """The positions of the assistant turns to be trained."""
        turns = enumerate(self.messages or [])
        return [i for i, turn in turns if turn["role"] == "assistant" and turn.get("train", True)]


def read(line: bytes) -> Row:
    """The row in one line. Raises BadRow."""
    return normalise(parse(line))


# ---- formats ----


def normalise(row: dict[str, Any]) -> Row:
    """The row as messages or text, with its format found by its columns. Raises BadRow."""
    given = {key for key, value in row.items() if value is not None}
    if {"chosen", "rejected"} <= given:
        raise BadRow("preference rows cannot be trained yet", "give the good answer alone, as prompt and completion")
    for name, columns, convert in _FORMATS:
        if columns <= given:
            return convert(name, row)
    found = ", ".join(sorted(given)) or "none"
    raise BadRow(f"no known format has these columns: {found[:200]}", KNOWN_COLUMNS)


def _from_messages(name: str, row: dict[str, Any]) -> Row:
    return _chat(name, _list(row, "messages"), row)


def _from_conversations(name: str, row: dict[str, Any]) -> Row:
    turns = [_from_sharegpt(turn) for turn in _list(row, "conversations")]
    return _chat(name, [*_system(row), *turns], row)


def _from_sharegpt(turn: Any) -> Any:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    role = turn["from"]
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    return {
        **rest,
        "role": SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role,
        "content": turn.get("value"),
    }


def _from_instruction(name: str, row: dict[str, Any]) -> Row:
    if row.get("history"):
        raise BadRow("the column history is not understood", "write the whole conversation as messages")
    question, more = _text(row, "instruction"), _text(row, "input") if row.get("input") is not None else ""
    asked = f"{question}\n\n{more}" if question.strip() and more.strip() else question if question.strip() else more
    return _chat(name, [*_system(row), _user(asked), _assistant(_text(row, "output"))], row)


def _from_prompt(name: str, row: dict[str, Any]) -> Row:
    answer = name.split("/")[1]
    if isinstance(row["prompt"], list) and isinstance(row[answer], list):
        # What stands in the prompt is context, its assistant turns too.
        context = [{**t, "train": False} if _is_assistant(t) else t for t in row["prompt"]]
        return _chat(name, [*_system(row), *context, *row[answer]], row)
    return _chat(name, [*_system(row), _user(_text(row, "prompt")), _assistant(_text(row, answer))], row)


def _from_text(name: str, row: dict[str, Any]) -> Row:
    text = _text(row, "text")
    if not text.strip():
        raise BadRow("the text is empty", "fill in text, or remove the row")
    return Row(name, text=text)


_FORMATS: tuple[tuple[str, frozenset[str], Callable[[str, dict[str, Any]], Row]], ...] = (
    ("messages", frozenset({"messages"}), _from_messages),
    ("conversations", frozenset({"conversations"}), _from_conversations),
    ("instruction/input/output", frozenset({"instruction", "output"}), _from_instruction),
    ("prompt/completion", frozenset({"prompt", "completion"}), _from_prompt),
    ("prompt/response", frozenset({"prompt", "response"}), _from_prompt),
    ("text", frozenset({"text"}), _from_text),
)


# ---- turns ----


def _chat(name: str, turns: list[Any], row: dict[str, Any]) -> Row:
    messages = [_message(number, turn) for number, turn in enumerate(turns, 1)]
    _check_order(messages)
    chat = Row(name, messages, _tools(row))
    trained = chat.trained_turns()
    if not trained:
        raise BadRow("no assistant turn is to be trained", "every one has train: false; remove it from one, or the row")
    if not any(_says_something(messages[turn]) for turn in trained):
        raise BadRow("the assistant's text is empty", "fill in the answer, or remove the row")
    return chat


def _message(number: int, turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(f"turn {number} is {kind_of(turn)}, not an object", 'write it as {"role": …, "content": …}')
    # Templates treat a missing key well and print a null as "None".
    message = {k: v for k, v in turn.items() if v is not None and k not in ("train", "weight")}
    role = message.get("role")
    if not isinstance(role, str) or role not in FOLLOWERS:
        said = repr(role)[:80] if role is not None else "missing"
        raise BadRow(f"the role of turn {number} is {said}", "use system, user, assistant or tool")
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise BadRow(f"tool_calls of turn {number} is not a list of objects", "write it as [{…}]")
    if "content" in message:
        message["content"] = _content(number, message["content"])
    elif not calls:
        raise BadRow(f"turn {number} ({role}) has no content", "fill in content, or remove the row")
    trained = _is_trained(number, turn)
    if role == "assistant" and not trained:
        message["train"] = False
    return message


def _content(number: int, content: Any) -> str:
    """Text as it is; a list of text parts as one text."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [p.get("text") if isinstance(p, dict) and p.get("type", "text") == "text" else None for p in parts]
    whole = [text for text in texts if isinstance(text, str)]
    if len(whole) < len(texts):
        what = "something other than text parts" if isinstance(content, list) else kind_of(content)
        raise BadRow(f"the content of turn {number} is {what}, not text", "only text can be trained")
    return "".join(whole)


def _is_trained(number: int, turn: dict[str, Any]) -> bool:
    """What `train` says, or `weight` (0 or 1), its name in the OpenAI format."""
    asked = turn.get("train", turn.get("weight"))
    if asked is None:
        return True
    if asked not in (0, 1):
        raise BadRow(f"train of turn {number} is {str(asked)[:80]!r}", "write true or false")
    if asked and turn.get("role") != "assistant":
        raise BadRow(
            f"turn {number} ({turn.get('role')}) cannot be trained", "only assistant turns can have train: true"
        )
    return bool(asked)


def _check_order(messages: list[Message]) -> None:
    before: str | None = None
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if role not in FOLLOWERS[before]:
            place = f"after {before}" if before else "at the beginning"
            raise BadRow(
                f"the roles are out of order: turn {number} is {role} {place}",
                f"{place} there may be: {', '.join(FOLLOWERS[before])}",
            )
        before = role
    if before != "assistant":
        found = f"ends with {before}" if before else "has no turns"
        raise BadRow(f"the row {found}, not with the assistant's answer", "add the answer, or remove what follows it")


def _says_something(message: Message) -> bool:
    return bool(message.get("content", "").strip() or message.get("tool_calls"))


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
