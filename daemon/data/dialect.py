"""What a chat template makes of tool calls, learned by asking it: whether it writes them, and the form it wants."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from daemon.data.formats import Message
from daemon.data.lines import BadRow
from daemon.data.template import Template

NAME = "Kq7Zname"
_KEY = "Kq7Zkey"
_OBJECT = {_KEY: 7}
_TEXT = json.dumps(_OBJECT)
_ID = "abc123XYZ"  # nine letters and digits: all that some templates allow
TOOLS = [{"type": "function", "function": {"name": NAME, "description": "d", "parameters": {"type": "object"}}}]

Arguments = Literal["object", "text", "as given"]


@dataclass(frozen=True)
class Dialect:
    """How the turns of a row are given to one template."""

    writes_calls: bool
    arguments: Arguments = "as given"
    needs_content: bool = False  # also beside tool calls, where "" stands for none

    def speak(self, messages: list[Message]) -> list[Message]:
        """The turns as the template wants them. Raises BadRow where it would leave tool calls out."""
        if not any("tool_calls" in message for message in messages):
            return messages
        if not self.writes_calls and any(message.get("tool_calls") for message in messages):
            raise BadRow(
                "the model's chat template leaves tool calls out",
                "use a model whose template knows tools, or write the calls into the content",
            )
        return [self._with_calls(message) if "tool_calls" in message else message for message in messages]

    def _with_calls(self, message: Message) -> Message:
        if not message["tool_calls"]:  # an empty list is none
            return {key: value for key, value in message.items() if key != "tool_calls"}
        calls = [self._call(call) for call in message["tool_calls"]]
        content = {"content": ""} if self.needs_content and "content" not in message else {}
        return {**message, **content, "tool_calls": calls}

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        if isinstance(call.get("function"), dict):
            return {**call, "function": self._function(call["function"])}
        return self._function(call)

    def _function(self, function: dict[str, Any]) -> dict[str, Any]:
        given = function.get("arguments")
        if self.arguments == "object" and isinstance(given, str):
            return {**function, "arguments": _parsed(given)}
        if self.arguments == "text" and isinstance(given, dict | list):
            return {**function, "arguments": json.dumps(given, ensure_ascii=False)}
        return function


def _parsed(arguments: str) -> dict[str, Any]:
    try:
        value = json.loads(arguments) if arguments.strip() else {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise BadRow("the arguments of a tool call are no JSON object", 'write them as {"name": value}')
    return value


def learn(template: Template) -> Dialect:
    """The first form that the template takes and writes."""
    for needs_content in (False, True):
        as_object, as_text = (_try(template, arguments, needs_content) for arguments in (_OBJECT, _TEXT))
        takes_object, takes_text = _writes(as_object), _writes(as_text) and _TEXT in (as_text or "")
        if takes_object or takes_text:
            both = takes_object and takes_text
            return Dialect(True, "as given" if both else "object" if takes_object else "text", needs_content)
    return Dialect(False)


def _writes(text: str | None) -> bool:
    return text is not None and NAME in text and _KEY in text


def _try(template: Template, arguments: Any, needs_content: bool) -> str | None:
    try:
        return template.render([*opening(arguments, needs_content), {"role": "assistant", "content": "a"}], None)[0]
    except BadRow:
        return None


def opening(arguments: Any, needs_content: bool) -> list[Message]:
    """A question, a call and its result: the beginning of a conversation with tools."""
    call = {"id": _ID, "type": "function", "function": {"name": NAME, "arguments": arguments}}
    calling: Message = {"role": "assistant", **({"content": ""} if needs_content else {}), "tool_calls": [call]}
    result = {"role": "tool", "name": NAME, "tool_call_id": _ID, "content": "Kq7Zresult"}
    return [{"role": "user", "content": "Kq7Zquestion"}, calling, result]


def probe(dialect: Dialect) -> list[Message]:
    """The same for a template of this dialect."""
    return opening(_TEXT if dialect.arguments == "text" else _OBJECT, dialect.needs_content)
