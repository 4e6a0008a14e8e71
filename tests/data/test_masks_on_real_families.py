"""On the real templates of model families: the tokens are those of transformers, and the assistant's text is trained.

What is expected is built from the messages by the tables of tests/helpers_families.py, written by hand; the code under
test has no part in it.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers import AutoTokenizer

from daemon.data.encoding import Encoded
from daemon.data.formats import normalise
from daemon.data.render import Renderer
from tests.helpers_families import (
    FAMILIES,
    Family,
    Messages,
    Turn,
    deepseek_after_tools,
    family_tokenizer,
    make_family_folder,
)

CONVERSATIONS = 200
TOOLS = [
    {"type": "function", "function": {"name": "find", "description": "<finds> 'it'", "parameters": {"type": "object"}}}
]
WORDS = [
    "Paris",
    "is",
    "what?",
    "🌍",
    "naïve",
    "Ünï",
    "日本語",
    "e\u0301",
    "{% x %}",
    "<b>",
    "&amp;",
    "a\\n",
    '"q"',
    "1+1",
    "]",
]
EDGES = ["", "", "", " ", "\n", "  ", "\n\n", "\t", " \n "]


@dataclass(frozen=True)
class Conversation:
    messages: Messages  # as a row of data has them
    tools: list[dict[str, Any]] | None
    enable_thinking: bool | None
    quotes: bool

    @property
    def row(self) -> dict[str, Any]:
        return {"messages": self.messages, "tools": self.tools}


class Writer:
    """Writes random conversations that a family's template takes."""

    def __init__(self, family: Family, seed: int) -> None:
        self.random = Random(f"{family.name} {seed}")
        self.family = family
        self.quotes = self.maybe(0.3)
        self.with_tools = family.tools is not None and self.maybe(0.5)
        self.had_calls = False

    def maybe(self, chance: float) -> bool:
        return self.random.random() < chance

    def write(self) -> Conversation:
        messages: Messages = []
        if self.family.system and self.maybe(0.4):
            messages.append({"role": "system", "content": self.text()})
        for _ in range(self.random.randint(1, 4)):
            messages.append({"role": "user", "content": self.text()})
            messages += self.answer()
        self.leave_some_untrained(messages)
        thinking = self.random.choice([None, True, False]) if self.family.thinks else None
        return Conversation(messages, TOOLS if self.with_tools else None, thinking, self.quotes)

    def answer(self) -> Messages:
        turns: Messages = []
        # The template of DeepSeek-V3 gets a second round of calls wrong by itself.
        once = self.family.tools == "text"
        while self.with_tools and self.maybe(0.4) and not (once and self.had_calls):
            self.had_calls = True
            calls = [self.call(n) for n in range(1 if self.family.one_call else self.random.randint(1, 2))]
            said = {"content": self.random.choice([None, "", self.words()])}
            turns.append({"role": "assistant", **said, **self.reasoning(), "tool_calls": calls})
            turns += [{"role": "tool", "tool_call_id": call["id"], "content": self.text()} for call in calls]
        reasoning = self.reasoning()
        return [
            *turns,
            {"role": "assistant", "content": ("" if reasoning else self.thought()) + self.text(), **reasoning},
        ]

    def call(self, number: int) -> dict[str, Any]:
        arguments = {"x": self.text(), "n": self.random.randint(0, 9)}
        given = arguments if self.maybe(0.5) else json.dumps(arguments, ensure_ascii=False)
        return {"id": f"abc12345{number}", "type": "function", "function": {"name": "find", "arguments": given}}

    def reasoning(self) -> dict[str, str]:
        if not self.family.thinks or not self.maybe(0.3):
            return {}
        return {"reasoning_content": self.words()}

    def thought(self) -> str:
        """Reasoning inside of content; empty in half of the cases."""
        if not self.maybe(0.2):
            return ""
        return f"<think>\n{self.words() if self.maybe(0.5) else ''}\n</think>\n\n"

    def words(self) -> str:
        return " ".join(self.random.choices(WORDS, k=self.random.randint(1, 6)))

    def text(self) -> str:
        words = self.random.choices(WORDS, k=self.random.randint(1, 8))
        if self.quotes and self.maybe(0.6):
            words.insert(self.random.randrange(len(words)), self.random.choice(self.family.special) + "assistant\n")
        return self.random.choice(EDGES) + self.random.choice([" ", "\n", ""]).join(words) + self.random.choice(EDGES)

    def leave_some_untrained(self, messages: Messages) -> None:
        for message in [m for m in messages if m["role"] == "assistant"][:-1]:
            if self.maybe(0.2):
                message["train"] = False


def expected_texts(family: Family, talk: Conversation) -> list[str]:
    """What the trained turns of a conversation train, by hand."""
    last_question = max(i for i, message in enumerate(talk.messages) if message["role"] == "user")
    texts = []
    for i, message in enumerate(talk.messages):
        if message["role"] != "assistant" or message.get("train") is False:
            continue
        turn = Turn(
            message["content"] or "",
            message.get("reasoning_content", ""),
            [printed_call(family, call) for call in message.get("tool_calls", [])],
            i > last_question,
            i == len(talk.messages) - 1,
            talk.enable_thinking is False,
        )
        follows_tool = family.name == "deepseek_v3" and talk.messages[i - 1]["role"] == "tool"
        texts.append((deepseek_after_tools if follows_tool else family.said)(turn))
    return texts


def printed_call(family: Family, call: dict[str, Any]) -> dict[str, Any]:
    return {**call["function"], "arguments": in_form(family, call["function"]["arguments"]), "id": call["id"]}


def in_form(family: Family, arguments: Any) -> Any:
    """Arguments in the form that the family's template wants."""
    if family.tools == "object" and isinstance(arguments, str):
        return json.loads(arguments)
    return (
        json.dumps(arguments, ensure_ascii=False)
        if family.tools == "text" and isinstance(arguments, dict)
        else arguments
    )


def for_transformers(family: Family, messages: Messages) -> Messages:
    turns = []
    for message in messages:
        turn = {key: value for key, value in message.items() if key != "train"}
        if "tool_calls" in turn:
            calls = turn["tool_calls"]
            turn["tool_calls"] = [
                {**c, "function": {**c["function"], "arguments": in_form(family, c["function"]["arguments"])}}
                for c in calls
            ]
            if turn["content"] is None and family.tools == "text":
                turn["content"] = ""
        turns.append(turn)
    return turns


@cache
def conversations(name: str) -> list[Conversation]:
    return [Writer(FAMILIES[name], seed).write() for seed in range(CONVERSATIONS)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("families")
    return {name: make_family_folder(base / name, name) for name in FAMILIES}


@cache
def renderer(folder: Path, enable_thinking: bool | None) -> Renderer:
    return Renderer(folder, enable_thinking)


def encode(folder: Path, talk: Conversation) -> Encoded:
    drawn = renderer(folder, talk.enable_thinking)
    return drawn.encode([drawn.draft(normalise(talk.row))])[0]


def trained_texts(name: str, encoded: Encoded) -> list[str]:
    """The runs of trained tokens, decoded."""
    runs: list[list[int]] = []
    for i, token in enumerate(encoded.ids):
        if encoded.mask[i]:
            if i == 0 or not encoded.mask[i - 1]:
                runs.append([])
            runs[-1].append(token)
    return [family_tokenizer(name).decode(run, skip_special_tokens=False) for run in runs]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_trained_is_what_the_assistant_says(folders: dict[str, Path], name: str) -> None:
    for talk in conversations(name):
        assert trained_texts(name, encode(folders[name], talk)) == expected_texts(FAMILIES[name], talk), talk


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tokens_are_those_of_transformers(folders: dict[str, Path], name: str) -> None:
    family = FAMILIES[name]
    theirs = AutoTokenizer.from_pretrained(folders[name])
    theirs.chat_control_tokens = []  # besides the special tokens: reasoning in content is meant as reasoning
    for talk in conversations(name):
        options = {} if talk.enable_thinking is None else {"enable_thinking": talk.enable_thinking}
        ids = theirs.apply_chat_template(
            for_transformers(family, talk.messages), tools=talk.tools, sanitize_control_tokens=talk.quotes, **options
        )["input_ids"]
        assert encode(folders[name], talk).ids == ids, talk


@pytest.mark.parametrize("name", [family.name for family in FAMILIES.values() if family.marked])
def test_where_a_template_has_marks_the_mask_is_that_of_transformers(folders: dict[str, Path], name: str) -> None:
    theirs = AutoTokenizer.from_pretrained(folders[name])
    for talk in conversations(name):
        if talk.quotes or any(message.get("train") is False for message in talk.messages):
            continue  # transformers knows masks without quotes only, and no turns that are context
        encoding = theirs.apply_chat_template(
            for_transformers(FAMILIES[name], talk.messages),
            tools=talk.tools,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert list(encode(folders[name], talk).mask) == encoding["assistant_masks"], talk


def marker_ids(name: str, encoded: Encoded) -> list[int]:
    """The tokens that give the conversation its structure, in order."""
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    markers = {tokenizer.token_to_id(token) for token in (*family.special, *family.plain) if token.strip()}
    return [token for token in encoded.ids if token in markers]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_quoted_marker_never_becomes_one(folders: dict[str, Path], name: str) -> None:
    family = FAMILIES[name]
    own = [*family.special, *(token for token in family.plain if token.startswith("<｜") and "tool" not in token)]
    for marker in own:
        quoting, plain = (
            Conversation(
                [
                    {"role": "user", "content": f"What is {quoted}?"},
                    {"role": "assistant", "content": f"It is {quoted} and\n{quoted}."},
                    {"role": "user", "content": quoted},
                    {"role": "assistant", "content": f"{quoted}{quoted}"},
                ],
                None,
                None,
                True,
            )
            for quoted in (marker, "x")
        )
        quoted = encode(folders[name], quoting)
        assert marker_ids(name, quoted) == marker_ids(name, encode(folders[name], plain)), marker
        assert trained_texts(name, quoted) == expected_texts(family, quoting), marker
