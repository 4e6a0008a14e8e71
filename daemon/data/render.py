"""Rows to text, exactly as transformers renders them with the model's chat template, and what in it is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from tokenizers import Tokenizer

from daemon.core import files
from daemon.core.errors import BadConfig
from daemon.data import dialect, notices
from daemon.data.dialect import Dialect
from daemon.data.encoding import Draft, Encoder
from daemon.data.formats import Row
from daemon.data.lines import BadRow
from daemon.data.locate import locate
from daemon.data.markers import Markers, Span
from daemon.data.speech import Speech, text_around
from daemon.data.template import Template
from daemon.data.tokens import TOKENIZER, no_tokenizer

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Style:
    """A chat template, and what was learned about it."""

    template: Template
    dialect: Dialect
    markers: Markers
    speech: Speech
    notes: frozenset[str]  # true of every row

    @classmethod
    def learn(cls, template: Template, tokenizer: Tokenizer) -> "Style":
        markers = Markers(tokenizer, text_around(template))
        spoken = dialect.learn(template)
        speech = Speech(template, spoken, markers)
        noted = {
            notices.ENDLESS: not speech.have_ends,
            notices.THINKING_IGNORED: "enable_thinking" not in template.source,
        }
        return cls(template, spoken, markers, speech, frozenset(note for note, is_so in noted.items() if is_so))


class Renderer:
    """The tokenizer and chat template of one model folder. Raises BadConfig where they cannot be used."""

    def __init__(self, model_folder: Path, enable_thinking: bool | None = None) -> None:
        self._folder = model_folder
        tokenizer = _load_tokenizer(model_folder)
        tokens = _named_tokens(model_folder)
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self._tokenizer = tokenizer
        self._encoder = Encoder(tokenizer, tokenizer.token_to_id(tokens.get("eos_token", "")))
        options = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        templates = _load_templates(model_folder, tokens, options)
        self._styles = {name: Style.learn(template, tokenizer) for name, template in templates.items()}
        self.encode, self.beginning = self._encoder.encode, self._encoder.beginning

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens as text, special ones too."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def draft(self, row: Row) -> Draft:
        """The row as text with the places to be trained. Raises BadRow, or BadConfig without a template for a chat."""
        if row.messages is None:
            return Draft(row.text or "", None)
        style = self._style(row)
        messages, tools = style.dialect.speak(row.messages), row.tools
        quotes = any(style.markers.quoted_in(value) for message in messages for value in message.values())
        quotes = quotes or (tools is not None and style.markers.quoted_in(tools))
        if quotes:
            messages, tools = style.markers.hide(messages, tools)
        given = Row(row.format, messages, tools)
        text, spans = _trained_spans(style, given)
        notes = style.notes | notices.notes_on_reasoning(given, text)
        if not quotes:
            return Draft(text, spans, notes=notes)
        return self._with_quotes(*style.markers.restore(text, spans), notes)

    def _with_quotes(self, text: str, spans: list[Span], quotes: list[Span], notes: frozenset[str]) -> Draft:
        for quote in sorted({text[start:end] for start, end in quotes}):
            if not self._encoder.can_be_text(quote):
                raise BadRow(f"the text quotes {quote}, which is the model's own marker", "write it in another way")
        return Draft(text, spans, quotes, notes | {notices.QUOTES})

    def _style(self, row: Row) -> Style:
        found = (self._styles.get("tool_use") if row.tools else None) or self._styles.get("default")
        if found is None:
            raise BadConfig(
                f"{self._folder} has no chat template, and the data has conversations.",
                "add chat_template.jinja to the model's folder (that of its instruct version, for example), "
                'or give rows as {"text": …}',
            )
        return found


def _trained_spans(style: Style, row: Row) -> tuple[str, list[Span]]:
    """The row's text, and in it what the assistant says in the turns to be trained."""
    template, speech = style.template, style.speech
    text, marked = template.render(row.messages or [], row.tools)
    if template.is_marked:
        spans = [speech.close(text, span) for span in _select(row, [span for span in marked if span[0] < span[1]])]
    else:
        found = speech.find(text)
        if found is not None and len(found) == len(_assistant_turns(row)):
            spans = _select(row, found)
        else:
            spans = [locate(template, speech, row, turn, text) for turn in row.trained_turns()]
    return text, [speech.without_prompt(text, span) for span in spans]


def _assistant_turns(row: Row) -> list[int]:
    return [i for i, message in enumerate(row.messages or []) if message["role"] == "assistant"]


def _select(row: Row, spans: list[Span]) -> list[Span]:
    """The spans of the turns to be trained, out of those of all turns."""
    turns, trained = _assistant_turns(row), row.trained_turns()
    if trained == turns:
        return spans
    if len(spans) != len(turns):
        raise BadRow(
            "train: false cannot be honoured: the chat template does not mark each assistant turn once",
            "remove train: false, or split the conversation into several rows",
        )
    return [span for turn, span in zip(turns, spans, strict=True) if turn in trained]


# ---- the model's folder ----


def _load_tokenizer(folder: Path) -> Tokenizer:
    path = folder / TOKENIZER
    if not path.is_file():
        raise no_tokenizer(folder)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise BadConfig(f"{path} cannot be read: {error}.", "copy the model's folder again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _named_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token and so on, as templates know them."""
    given = {**_read(folder / "special_tokens_map.json"), **_read(folder / "tokenizer_config.json")}
    tokens = {name: given[name] for name in NAMED_TOKENS if given.get(name) is not None}
    return {name: token["content"] if isinstance(token, dict) else str(token) for name, token in tokens.items()}


def _load_templates(folder: Path, tokens: dict[str, str], options: dict[str, Any]) -> dict[str, Template]:
    """The chat templates by name; none where the model has none."""
    path = folder / "chat_template.jinja"
    given: Any = path.read_text() if path.is_file() else _read(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(given, list):
        given = {one["name"]: one["template"] for one in given}
    sources = given if isinstance(given, dict) else {"default": given} if given else {}
    try:
        return {name: Template(source, tokens, options) for name, source in sources.items()}
    except TemplateSyntaxError as error:
        raise BadConfig(
            f"The chat template in {folder} cannot be read: line {error.lineno}: {error.message}.",
            "correct it, or copy the model's folder again",
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return files.read_json(path) or {}
    except ValueError as error:
        raise BadConfig(f"{path} is not JSON: {error}.", "copy the model's folder again") from error
