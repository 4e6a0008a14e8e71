"""Rows to tokens and masks, with the model's own tokenizer and chat template, exactly as transformers renders them."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from tokenizers import Tokenizer

from daemon.core import files
from daemon.core.errors import BadConfig
from daemon.data.formats import Message, Row
from daemon.data.lines import BadRow
from daemon.data.template import Span, Template
from daemon.data.tokens import TOKENIZER, no_tokenizer

# Stands for an assistant's answer while its place is looked for. No template treats plain letters in a special way.
SENTINEL = "Kq7ZsentinelW3xVtextY9bJ"
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Draft:
    """A row as text. `spans` are the characters to be trained; None = all of a plain text."""

    text: str
    spans: list[Span] | None


@dataclass(frozen=True)
class Encoded:
    """A row as tokens; `mask` has a byte for each, 1 = trained."""

    ids: list[int]
    mask: bytes


class Renderer:
    """The tokenizer and chat template of one model folder. Raises BadConfig where they cannot be used."""

    def __init__(self, model_folder: Path) -> None:
        self._folder = model_folder
        self._tokenizer = _load_tokenizer(model_folder)
        tokens = _named_tokens(model_folder)
        self._eos = self._tokenizer.token_to_id(tokens.get("eos_token", ""))
        self._templates = _load_templates(model_folder, tokens)
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        special = {t.content for t in added.values() if t.special}
        special |= {tokens["eos_token"]} if "eos_token" in tokens else set()
        longest_first = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
        # Some templates put a space before the token that ends a turn.
        self._end_of_turn = re.compile(f" *(?:{longest_first or '(?!)'})")

    # ---- rows to text ----

    def draft(self, row: Row) -> Draft:
        """The row as text with the places to be trained. Raises BadRow, or BadConfig without a template for a chat."""
        if row.messages is None:
            return Draft(row.text or "", None)
        template = self._template(row)
        text, marked = template.render(row.messages, row.tools)
        if template.is_marked:
            return Draft(text, self._close_spans(text, _select(row, [span for span in marked if span[0] < span[1]])))
        return Draft(text, [self._locate(template, row, turn, text) for turn in row.trained_turns()])

    def _template(self, row: Row) -> Template:
        found = (self._templates.get("tool_use") if row.tools else None) or self._templates.get("default")
        if found is None:
            raise BadConfig(
                f"{self._folder} has no chat template, and the data has conversations.",
                "add chat_template.jinja to the model's folder (that of its instruct version, for example), "
                'or give rows as {"text": …}',
            )
        return found

    def _close_spans(self, text: str, spans: list[Span]) -> list[Span]:
        """Spans with the token that ends the turn, where the template's marks leave it just outside."""
        return [
            (start, end) if self._ends_in_special(text[start:end]) else (start, self._after_end_of_turn(text, end))
            for start, end in spans
        ]

    def _ends_in_special(self, text: str) -> bool:
        tail = text.rstrip()[-100:]
        return any(match.end() == len(tail) for match in self._end_of_turn.finditer(tail))

    def _after_end_of_turn(self, text: str, end: int) -> int:
        found = self._end_of_turn.match(text, end)
        return found.end() if found else end

    def _locate(self, template: Template, row: Row, turn: int, text: str) -> Span:
        """Where the assistant's turn stands in the row's text, found by rendering the row with another answer.

        This holds for templates that rewrite earlier turns and for answers that quote the template's own markers.
        """
        messages = row.messages or []
        stand_in: list[Message] = [*messages[:turn], {"role": "assistant", "content": SENTINEL}, *messages[turn + 1 :]]
        other, _ = template.render(stand_in, row.tools)
        before, found, after = other.partition(SENTINEL)
        start = _start(template, row, turn, before)
        end = len(text) - len(after)
        if not found or start is None or end < start or not (text.startswith(before[:start]) and text.endswith(after)):
            raise BadRow(
                f"the place of turn {turn + 1} in the rendered text cannot be found",
                "use a chat template with {% generation %} marks, or split the conversation into several rows",
            )
        return start, self._after_end_of_turn(text, end)

    # ---- text to tokens ----

    def encode(self, drafts: Sequence[Draft]) -> list[Encoded]:
        """Tokens and masks, in the same order."""
        # The template has written the special tokens of a chat; those of a plain text are the tokenizer's part.
        chats = iter(self._encode_batch([d.text for d in drafts if d.spans is not None], False))
        texts = iter(self._encode_batch([d.text for d in drafts if d.spans is None], True))
        return [
            self._whole(next(texts).ids) if draft.spans is None else _masked(next(chats), draft.spans)
            for draft in drafts
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens as text, special ones too."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def _encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
        return self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens) if texts else []

    def _whole(self, ids: list[int]) -> Encoded:
        if self._eos is not None and ids[-1:] != [self._eos]:
            ids = [*ids, self._eos]
        return Encoded(ids, b"\1" * len(ids))


def _masked(encoding: Any, spans: list[Span]) -> Encoded:
    offsets: list[Span] = encoding.offsets
    mask = bytearray(len(offsets))
    for start, end in spans:
        first = bisect_right(offsets, start, key=lambda offset: offset[1])
        last = bisect_left(offsets, end, key=lambda offset: offset[0])
        mask[first:last] = b"\1" * (last - first)
    return Encoded(encoding.ids, bytes(mask))


def _select(row: Row, spans: list[Span]) -> list[Span]:
    """The marked spans of the turns to be trained."""
    turns = [i for i, message in enumerate(row.messages or []) if message["role"] == "assistant"]
    trained = row.trained_turns()
    if trained == turns:
        return spans
    if len(spans) != len(turns):
        raise BadRow(
            "train: false cannot be honoured: the chat template does not mark each assistant turn once",
            "remove train: false, or split the conversation into several rows",
        )
    return [span for turn, span in zip(turns, spans, strict=True) if turn in trained]


def _start(template: Template, row: Row, turn: int, before: str) -> int | None:
    """Where the assistant begins to write in `before`, the text up to its answer: behind the prompt for generation.

    None where it cannot be told.
    """
    earlier = (row.messages or [])[:turn]
    prompt, _ = template.render(earlier, row.tools, add_generation_prompt=True)
    if before.startswith(prompt):
        return len(prompt)
    bare, _ = template.render(earlier, row.tools)
    common = _common_length(prompt, before)
    if len(bare) < common:  # the prompt opens a block, of reasoning for example, that this turn does not have
        return common
    # Earlier turns look different without the later ones. The last place that looks like the prompt's first line is
    # ours: after it there is only what the template puts before an answer.
    opening = prompt[len(bare) :] if prompt.startswith(bare) else ""
    first_line = re.match(r"\s*[^\n]*\n?", opening)
    place = before.rfind(first_line[0]) if first_line and first_line[0].strip() else -1
    return place + _common_length(opening, before[place:]) if place >= 0 else None


def _common_length(one: str, other: str) -> int:
    """Of what both begin with."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


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


def _load_templates(folder: Path, tokens: dict[str, str]) -> dict[str, Template]:
    """The chat templates by name; none where the model has none."""
    path = folder / "chat_template.jinja"
    given: Any = path.read_text() if path.is_file() else _read(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(given, list):
        given = {one["name"]: one["template"] for one in given}
    sources = given if isinstance(given, dict) else {"default": given} if given else {}
    try:
        return {name: Template(source, tokens) for name, source in sources.items()}
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
