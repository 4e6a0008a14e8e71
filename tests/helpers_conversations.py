"""Random conversations for the families of tests/helpers_families.py, and by hand what each trains.

The code under test has no part in what is expected: it comes from the raw messages alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerBase

from tests.helpers_families import FAMILIES, Family, Messages, Turn, deepseek_after_tools, family_tokenizer

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


def transformers_ids(theirs: PreTrainedTokenizerBase, family: Family, talk: Conversation) -> list[int]:
    """What transformers itself makes of a conversation. `theirs` is the tokenizer of the family's folder."""
    theirs.chat_control_tokens = []  # besides the special tokens: reasoning in content is meant as reasoning
    options = {} if talk.enable_thinking is None else {"enable_thinking": talk.enable_thinking}
    encoding = theirs.apply_chat_template(
        for_transformers(family, talk.messages), tools=talk.tools, sanitize_control_tokens=talk.quotes, **options
    )
    return list(encoding["input_ids"])


def decoded_runs(name: str, ids: Sequence[int], trained: Sequence[Any]) -> list[str]:
    """The text of each run of tokens that are trained."""
    runs: list[list[int]] = []
    for i, token in enumerate(ids):
        if trained[i]:
            if i == 0 or not trained[i - 1]:
                runs.append([])
            runs[-1].append(token)
    return [family_tokenizer(name).decode(run, skip_special_tokens=False) for run in runs]
