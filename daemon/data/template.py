"""A chat template, rendered in a sandbox exactly as transformers 5 renders it, with the spans that it marks."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from daemon.data.formats import Message
from daemon.data.lines import BadRow
from daemon.data.markers import Span

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_OF_DICT = frozenset(dir(dict))
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")


class Template:
    """A compiled chat template. Raises jinja2.TemplateSyntaxError where it is none."""

    def __init__(self, source: str, named_tokens: dict[str, str], options: dict[str, Any] | None = None) -> None:
        """`options` are further variables for the template, enable_thinking for example."""
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Marks, loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _now_as
        environment.globals["dict"] = _Dict()
        environment.globals["namespace"] = _Namespace
        marks = environment.extensions[_Marks.identifier]
        assert isinstance(marks, _Marks)
        self.source = source
        self.is_marked = bool(_MARK.search(source))
        self._marks = marks
        self._template = environment.from_string(source)
        self._template.globals = dict(self._template.globals)  # read for every row, and slowly as it comes
        self._named_tokens = named_tokens
        self.options = options or {}

    def render(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        *,
        add_generation_prompt: bool = False,
        options: dict[str, Any] | None = None,
    ) -> tuple[str, list[Span]]:
        """The conversation as text, and the spans marked by {% generation %}. Raises BadRow."""
        variables = {
            **self._named_tokens,
            **(self.options if options is None else options),
            "messages": [_plain(message) for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            with self._marks.recording() as record:
                for block in self._template.generate(variables):
                    record.write(block)
        except MemoryError:
            raise
        except Exception as error:  # a template is a program: given odd rows it can fail in any way
            said = str(error) or type(error).__name__
            raise BadRow(f"the model's chat template refuses the row: {said[:300]}", "change the row") from error
        return record.text(), record.spans


class _Record:
    """What one rendering has written so far."""

    def __init__(self) -> None:
        self._blocks: list[str] = []
        self._characters = 0
        self.spans: list[Span] = []

    def write(self, block: str) -> None:
        self._blocks.append(block)
        self._characters += len(block)

    def mark(self, text: str) -> None:
        self.spans.append((self._characters, self._characters + len(text)))

    def text(self) -> str:
        return "".join(self._blocks)


class _Marks(Extension):
    """The tag {% generation %}…{% endgeneration %} around what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 - the type that jinja2 gives it

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._record: _Record | None = None

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        text = str(caller())
        if self._record is not None:
            self._record.mark(text)
        return text

    @contextmanager
    def recording(self) -> Iterator[_Record]:
        self._record = record = _Record()
        try:
            yield record
        finally:
            self._record = None


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's, with its answers remembered: it asks the same of every attribute of every turn, and rendering is half
    of the time that short rows take.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._answers: dict[tuple[type, str], bool] = {}

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _OF_DICT:  # an attribute cannot be meant
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        asked = (type(obj), attr)
        answer = self._answers.get(asked)
        if answer is None:
            answer = super().is_safe_attribute(obj, attr, value)
            # Of these it asks nothing but the type. The names can come from the data, without end.
            if asked[0] in (str, dict, list, LoopContext) and len(self._answers) < 1000:
                self._answers[asked] = answer
        return answer


class _Dict:
    """What templates know as `dict`: makes one, and leads nowhere else in Python."""

    def __call__(self, *pairs: Any, **values: Any) -> dict[Any, Any]:
        return dict(*pairs, **values)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


class _Namespace(Namespace):
    """jinja2's, without names that reach into Python itself."""

    def __init__(*arguments: Any, **values: Any) -> None:  # so that a template may have a value called self
        namespace, *pairs = arguments
        given = dict(*pairs, **values)
        for name in given:
            _check_name(name)
        Namespace.__init__(namespace, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a chat template may not use the name {name!r}")


def _plain(message: Message) -> Message:
    """A turn as templates see it: our own key left out, its reasoning under each name that they look for."""
    plain = {key: value for key, value in message.items() if key != "train"}
    reasoning = next((plain[name] for name in _REASONING_NAMES if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, and chat is not HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _now_as(form: str) -> str:
    return datetime.now().strftime(form)
