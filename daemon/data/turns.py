"""The turns of a conversation: roles, their order, content, tool calls, and which are trained."""

from typing import Any

import orjson

from daemon.data.lines import BadRow, kind_of

Message = dict[str, Any]
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")

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
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


def read_turn(number: int, turn: Any) -> Message:
    """One turn, checked. Raises BadRow."""
    if not isinstance(turn, dict):
        raise BadRow(f"turn {number} is {kind_of(turn)}, not an object", 'write it as {"role": …, "content": …}')
    # Templates treat a missing key well and print a null as "None".
    message = {k: v for k, v in turn.items() if v is not None and k not in ("train", "weight")}
    role = message.get("role")
    if not isinstance(role, str) or role not in FOLLOWERS:
        said = repr(role)[:80] if role is not None else "missing"
        raise BadRow(f"the role of turn {number} is {said}", "use system, developer, user, assistant or tool")
    _check_calls(number, message)
    for name in REASONING_NAMES:
        if name in message and not isinstance(message[name], str):
            raise BadRow(f"{name} of turn {number} is {kind_of(message[name])}, not text", f"put {name} in quotes")
    if "content" in message:
        message["content"] = _content(number, message["content"])
    elif not message.get("tool_calls"):
        raise BadRow(f"turn {number} ({role}) has no content", "fill in content, or remove the row")
    trained = _is_trained(number, turn)
    if role == "assistant" and not trained:
        message["train"] = False
    return message


def _check_calls(number: int, message: Message) -> None:
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise BadRow(f"tool_calls of turn {number} is not a list of objects", "write it as [{…}]")
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow(
                f"a tool call of turn {number} names no function",
                'write it as {"type": "function", "function": {"name": "…", "arguments": {…}}}',
            )


def _content(number: int, content: Any) -> str:
    """Text as it is; a list of text parts as one text."""
    if isinstance(content, str):
        return content
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


def check_order(messages: list[Message]) -> None:
    """Raises BadRow where a role stands where it may not."""
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
    if before is None:
        raise BadRow("the row has no turns", "add a question and its answer, or remove the row")
    if before != "assistant":
        reason = f"the row ends with {before}, not with the assistant's answer"
        raise BadRow(reason, "add the answer, or remove what follows it")


def says_something(message: Message) -> bool:
    return bool(message.get("content", "").strip() or message.get("tool_calls"))


def thinks(message: Message) -> bool:
    """Whether the assistant reasons in this turn, in its content or beside it."""
    if message["role"] != "assistant":
        return False
    if "<think>" in message.get("content", ""):
        return True
    return len(message) > 2 and any(message.get(name) for name in REASONING_NAMES)


def from_sharegpt(number: int, turn: Any) -> Any:
    """A turn of `conversations` in the words of `messages`; what is no such turn is left for the check."""
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    role = turn["from"]
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if role == "function_call":
        return {**rest, "role": "assistant", "tool_calls": _calls(number, turn.get("value"))}
    named = SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    return {**rest, "role": named, "content": turn.get("value")}


def _calls(number: int, value: Any) -> list[dict[str, Any]]:
    """The calls that a `function_call` turn writes as JSON: one, or a list of them."""
    try:
        given = orjson.loads(value) if isinstance(value, str) else value
    except orjson.JSONDecodeError:
        given = None
    calls = given if isinstance(given, list) else [given]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise BadRow(
            f"the function_call of turn {number} is not JSON", 'write its value as {"name": "…", "arguments": {…}}'
        )
    return [{"type": "function", "function": call} for call in calls]
