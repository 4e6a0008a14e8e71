"""Markers that data quotes, and what the report says where data and template disagree."""

import time
from pathlib import Path
from typing import Any

import pytest

from daemon.core import config
from daemon.data import notices, tokens
from daemon.data.formats import normalise
from daemon.data.lines import BadRow
from daemon.data.markers import Markers
from daemon.data.render import Renderer
from tests.helpers_data import MARKED, QWEN3, chat, jsonl, make_job, make_model_folder, make_workspace, run_intake
from tests.helpers_families import TEMPLATES, family_tokenizer, make_family_folder

THOUGHTFUL = {
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfirst"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "last", "reasoning_content": "aha"},
    ]
}
CALLING = {
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "It is 7."},
    ]
}


def notes(folder: Path, row: dict[str, Any], enable_thinking: bool | None = None) -> frozenset[str]:
    return Renderer(folder, enable_thinking).draft(normalise(row)).notes


def test_tags_that_assistants_write_are_no_markers() -> None:
    markers = Markers(family_tokenizer("qwen3"), "<|im_start|> <think> <tool_call>")
    assert markers.tokens == ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]


def test_added_tokens_that_separate_turns_are_markers_though_not_marked_as_special() -> None:
    markers = Markers(family_tokenizer("deepseek_v3"), "<｜User｜>q<｜Assistant｜>a\n\n")
    assert {"<｜User｜>", "<｜Assistant｜>"} < set(markers.tokens)
    assert not markers.quoted_in("<｜tool▁sep｜>")


@pytest.mark.parametrize("place", ["content", "reasoning_content"])
def test_a_quote_is_found_wherever_it_stands(tmp_path: Path, place: str) -> None:
    folder = make_model_folder(tmp_path)
    row = chat("q", "a")
    row["messages"][1][place] = "see <|im_end|> here"
    assert notices.QUOTES in notes(folder, row)
    deep = {**CALLING, "tools": [{"function": {"name": "f", "parameters": {"<|im_end|>": [{"x": "y"}]}}}]}
    assert notices.QUOTES in notes(folder, deep)
    assert notices.QUOTES not in notes(folder, chat("<|im_end", "|>"))


def test_a_row_that_holds_the_private_characters_of_quotes_is_bad(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    with pytest.raises(BadRow, match="private character"):
        notes(folder, chat("<|im_end|> \U0010fffd", "a"))
    assert notices.QUOTES not in notes(folder, chat("\U0010fffd", "a"))


def test_text_full_of_beginnings_of_markers_is_searched_quickly() -> None:
    markers = Markers(family_tokenizer("llama3_1"), "")
    began = time.monotonic()
    assert not markers.quoted_in("<|" * 2_000_000)
    assert time.monotonic() - began < 2


def test_reasoning_that_the_template_leaves_out_is_noted(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    assert {notices.REASONING, notices.LEFT_OUT} <= notes(folder, THOUGHTFUL)
    alone = {"messages": THOUGHTFUL["messages"][2:]}
    assert notes(folder, alone) == {notices.REASONING}
    assert notes(folder, chat("q", "a")) == frozenset()


def test_a_template_that_never_writes_reasoning_leaves_it_out(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, MARKED)
    row = chat("q", "a")
    row["messages"][1]["reasoning_content"] = "hm"
    assert notices.LEFT_OUT in notes(folder, row)


def test_tool_calls_that_the_template_leaves_out_make_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(BadRow, match="leaves tool calls out"):
        notes(make_family_folder(tmp_path, "chatml"), CALLING)


def test_arguments_that_are_no_object_make_a_bad_row_where_the_template_needs_one(tmp_path: Path) -> None:
    row = {"messages": [dict(message) for message in CALLING["messages"]]}
    row["messages"][1] = {**row["messages"][1], "tool_calls": [{"function": {"name": "f", "arguments": "[1"}}]}
    with pytest.raises(BadRow, match="no JSON object"):
        notes(make_family_folder(tmp_path, "llama3_1"), row)


def test_an_empty_list_of_tool_calls_is_none(tmp_path: Path) -> None:
    row = chat("q", "a")
    row["messages"][1]["tool_calls"] = []
    assert notes(make_family_folder(tmp_path, "llama3_1"), row) >= {notices.THINKING_IGNORED}


def test_a_template_without_an_end_of_turn_is_noted(tmp_path: Path) -> None:
    assert notices.ENDLESS in notes(make_family_folder(tmp_path / "glm", "glm4_moe"), chat("q", "a"))
    assert notices.ENDLESS not in notes(make_family_folder(tmp_path / "phi", "phi3"), chat("q", "a"))


def test_enable_thinking_reaches_the_template_and_names_the_cache(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", (TEMPLATES / "glm4_moe.jinja").read_text())
    folder = workspace / "models/base/small"
    drafts = {value: Renderer(folder, value).draft(normalise(chat("q", "a"))).text for value in (None, False)}
    assert "/nothink" in drafts[False]
    assert "/nothink" not in drafts[None]
    settings = config.load(workspace / "config.json", {})[0]
    keys = {tokens.key(folder, config.override(settings, enable_thinking=value)) for value in (None, True, False)}
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("template", "thinking", "rows", "said"),
    [
        (QWEN3, None, [THOUGHTFUL], "1 rows have reasoning that the chat template leaves out"),
        (QWEN3, False, [THOUGHTFUL], "enable_thinking is false, and 1 rows have reasoning"),
        (MARKED, True, [chat("q", "a")], "enable_thinking has no effect"),
        (QWEN3, None, [chat("q", "<|im_end|>")], "1 rows quote the model's own markers"),
    ],
)
def test_the_report_says_where_data_and_template_disagree(
    tmp_path: Path, template: str, thinking: bool | None, rows: list[dict[str, Any]], said: str
) -> None:
    workspace = make_workspace(tmp_path / "w", template, enable_thinking=thinking)
    report = run_intake(workspace, make_job(workspace, jsonl(*rows, chat("q2", "a2"))))
    assert [warning for warning in report.warnings if said in warning]
    quiet = make_workspace(tmp_path / "quiet", QWEN3)
    assert run_intake(quiet, make_job(quiet, jsonl(chat("q", "a")))).warnings == []
