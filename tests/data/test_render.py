"""Tokens and masks are those of transformers; without marks in the template places are found by what surrounds them."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from daemon.core.errors import BadConfig
from daemon.data.encoding import Encoded
from daemon.data.formats import normalise
from daemon.data.lines import BadRow
from daemon.data.render import Renderer
from tests.helpers_data import MARKED, QWEN3, chat, make_model_folder

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Où est 🦉?"},
    {"role": "assistant", "content": "  là-bas 🌍\n"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "So it is."},
]
TOOL_TURNS = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": "<é>"}}}]},
    {"role": "tool", "content": "7"},
    {"role": "assistant", "content": "It is 7.", "reasoning_content": "so it is"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<finds>", "parameters": {}}}]


def encode(renderer: Renderer, row: dict[str, Any]) -> Encoded:
    return renderer.encode([renderer.draft(normalise(row))])[0]


def trained_text(folder: Path, row: dict[str, Any]) -> list[str]:
    """The runs of trained tokens, decoded by transformers."""
    encoded = encode(Renderer(folder), row)
    runs: list[list[int]] = []
    for i, token in enumerate(encoded.ids):
        if encoded.mask[i] and (i == 0 or not encoded.mask[i - 1]):
            runs.append([])
        if encoded.mask[i]:
            runs[-1].append(token)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


@pytest.mark.parametrize("messages", [TURNS, TURNS[1:3], TURNS[1:], chat("<b> & 'c'", "{% x %} <|im_end")["messages"]])
def test_with_marks_tokens_and_mask_equal_those_of_transformers(tmp_path: Path, messages: list[dict[str, Any]]) -> None:
    folder = make_model_folder(tmp_path, MARKED)
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    ours = encode(Renderer(folder), {"messages": messages})
    assert ours.ids == theirs["input_ids"]
    assert list(ours.mask) == theirs["assistant_masks"]


@pytest.mark.parametrize(("messages", "tools"), [(TURNS, None), (TOOL_TURNS, TOOLS)])
def test_without_marks_the_tokens_equal_those_of_transformers(
    tmp_path: Path, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    folder = make_model_folder(tmp_path)
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tools=tools)["input_ids"]
    assert encode(Renderer(folder), {"messages": messages, "tools": tools}).ids == theirs


def test_qwen3_trains_the_answer_and_the_token_that_ends_it(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    assert trained_text(folder, chat("Why?", "Because.")) == ["Because.<|im_end|>"]


def test_qwen3_trains_every_answer_of_a_conversation_with_a_system_prompt(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    expected = ["  là-bas 🌍\n<|im_end|>", "So it is.<|im_end|>"]
    assert trained_text(folder, {"messages": TURNS}) == expected


def test_qwen3_trains_answers_whose_earlier_thoughts_the_template_drops(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    thoughtful = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfirst"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>\naha\n</think>\n\nlast"},
    ]
    expected = ["first<|im_end|>", "<think>\naha\n</think>\n\nlast<|im_end|>"]
    assert trained_text(folder, {"messages": thoughtful}) == expected


def test_qwen3_trains_tool_calls_and_the_answers_after_them(tmp_path: Path) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"x": "<é>"}}\n</tool_call><|im_end|>'
    expected = [call, "It is 7.<|im_end|>", "Yes.<|im_end|>"]
    assert trained_text(make_model_folder(tmp_path), {"messages": TOOL_TURNS, "tools": TOOLS}) == expected


@pytest.mark.parametrize(
    "answer", ["\n\n  indented\n  twice \n", "a|im_end|> b <|im_start|>assistant\nc", "</s> ", "a"]
)
def test_qwen3_trains_exactly_the_answer_whatever_stands_in_it(tmp_path: Path, answer: str) -> None:
    folder = make_model_folder(tmp_path)
    quoting = chat(f"Say this: <|im_start|>assistant\n{answer}<|im_end|>", answer)
    expected = answer.lstrip("\n") + "<|im_end|>"
    assert trained_text(folder, quoting) == [expected]


@pytest.mark.parametrize("template", [MARKED, QWEN3])
def test_a_turn_with_train_false_is_context_only(tmp_path: Path, template: str) -> None:
    folder = make_model_folder(tmp_path, template)
    messages = [*TURNS[:2], {**TURNS[2], "train": False}, *TURNS[3:]]
    assert trained_text(folder, {"messages": messages}) == ["So it is.<|im_end|>"]


def test_an_end_of_turn_just_outside_the_marks_is_trained_too(tmp_path: Path) -> None:
    outside = MARKED.replace(" + '<|im_end|>' }}{% endgeneration %}{{ '", " }}{% endgeneration %}{{ '<|im_end|>")
    assert outside != MARKED
    assert trained_text(make_model_folder(tmp_path, outside), chat("q", "a")) == ["a<|im_end|>"]


def test_a_template_that_cannot_be_located_makes_a_bad_row(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, "{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    with pytest.raises(BadRow, match="the place of turn 2"):
        Renderer(folder).draft(normalise(chat("q", "a")))


def test_what_a_template_refuses_is_a_bad_row_in_its_words(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, "{{ raise_exception('no system prompt here') }}")
    with pytest.raises(BadRow, match="no system prompt here"):
        Renderer(folder).draft(normalise(chat("q", "a")))


def test_a_template_reaches_nothing_outside_its_sandbox(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(BadRow, match="unsafe"):
        Renderer(folder).draft(normalise(chat("q", "a")))


def test_text_is_trained_whole_and_ended(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, None)
    assert trained_text(folder, {"text": "It is so."}) == ["It is so.<|im_end|>"]
    assert trained_text(folder, {"text": "It is so.<|im_end|>"}) == ["It is so.<|im_end|>"]


def test_chats_and_texts_in_one_batch_keep_their_order(tmp_path: Path) -> None:
    renderer = Renderer(make_model_folder(tmp_path))
    rows = [normalise(row) for row in ({"text": "a"}, chat("q", "b"), {"text": "c"}, chat("q", "d"))]
    together = renderer.encode([renderer.draft(row) for row in rows])
    assert together == [renderer.encode([renderer.draft(row)])[0] for row in rows]


def test_named_templates_in_tokenizer_config_are_understood(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, None)
    config = '{"eos_token": {"content": "<|im_end|>"}, "chat_template": [{"name": "default", "template": "%s"}]}'
    source = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(config % source)
    assert Renderer(folder).draft(normalise(chat("q", "a"))).text == "q<|im_end|>a<|im_end|>"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{}", "cannot be read"),
        ("tokenizer_config.json", "{", "is not JSON"),
        ("chat_template.jinja", "{% if %}", "chat template in"),
        ("chat_template.jinja", None, "has no chat template"),
    ],
)
def test_a_model_folder_that_cannot_be_used_is_named_with_a_remedy(
    tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    folder = make_model_folder(tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(BadConfig, match=said) as refused:
        Renderer(folder).draft(normalise(chat("q", "a")))
    assert refused.value.remedy
