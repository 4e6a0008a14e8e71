"""Rows of each format become messages or text; bad ones are refused in words."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.data.formats import Preference, read
from daemon.data.lines import BadRow

QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
CALL: dict[str, Any] = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
RESULT = {"role": "tool", "content": "7"}


def line(row: Any) -> bytes:
    return json.dumps(row).encode()


def turns(*messages: Any) -> bytes:
    return line({"messages": messages})


@pytest.mark.parametrize(
    ("name", "row", "messages"),
    [
        ("messages", {"messages": [SYSTEM, QUESTION, ANSWER]}, [SYSTEM, QUESTION, ANSWER]),
        ("messages", {"messages": [QUESTION, CALL, RESULT, ANSWER]}, [QUESTION, CALL, RESULT, ANSWER]),
        (
            "conversations",
            {"conversations": [{"from": f, "value": v} for f, v in (("system", "s"), ("human", "q"), ("gpt", "a"))]},
            [SYSTEM, QUESTION, ANSWER],
        ),
        ("instruction/input/output", {"instruction": "q", "input": "", "output": "a"}, [QUESTION, ANSWER]),
        (
            "instruction/input/output",
            {"instruction": "q", "input": "more", "output": "a"},
            [{"role": "user", "content": "q\n\nmore"}, ANSWER],
        ),
        ("prompt/completion", {"prompt": "q", "completion": "a"}, [QUESTION, ANSWER]),
        ("prompt/response", {"prompt": "q", "response": "a", "system": "s"}, [SYSTEM, QUESTION, ANSWER]),
        (
            "prompt/completion",
            {"prompt": [QUESTION, ANSWER, QUESTION], "completion": [ANSWER]},
            [QUESTION, {**ANSWER, "train": False}, QUESTION, ANSWER],
        ),
        ("prompt/completion", {"prompt": [SYSTEM, QUESTION], "completion": "a"}, [SYSTEM, QUESTION, ANSWER]),
        ("prompt/response", {"prompt": "q", "response": [ANSWER]}, [QUESTION, ANSWER]),
        (
            "instruction/input/output",
            {"instruction": "q", "input": None, "output": "a", "system": "s", "history": [["q", "a"], ["q", "a"]]},
            [SYSTEM, QUESTION, ANSWER, QUESTION, ANSWER, QUESTION, ANSWER],
        ),
        (
            "conversations",
            {
                "system": "s",
                "conversations": [
                    {"from": "human", "value": "q"},
                    {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
                    {"from": "observation", "value": "7"},
                    {"from": "gpt", "value": "a"},
                ],
            },
            [
                *(SYSTEM, QUESTION),
                {"role": "assistant", "tool_calls": [{"type": "function", **CALL["tool_calls"][0]}]},
                *(RESULT, ANSWER),
            ],
        ),
    ],
)
def test_each_format_becomes_messages(name: str, row: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    read_row = read(line(row))
    assert (read_row.format, read_row.messages) == (name, messages)


def test_text_stays_text_and_a_column_of_nulls_counts_as_absent() -> None:
    assert read(line({"messages": None, "text": "t\n"})).text == "t\n"


def test_content_in_text_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = read(turns(QUESTION, {"role": "assistant", "content": parts}))
    assert row.messages is not None
    assert row.messages[1]["content"] == "ab"


@pytest.mark.parametrize("key", [{"train": False}, {"weight": 0}])
def test_a_turn_not_to_be_trained_is_marked(key: dict[str, Any]) -> None:
    assert read(turns(QUESTION, {**ANSWER, **key}, QUESTION, ANSWER)).trained_turns() == [3]


def test_tools_may_be_written_as_json_in_text() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert read(line({"messages": [QUESTION, ANSWER], "tools": json.dumps(tools)})).tools == tools


def test_only_well_made_preferences_count_as_such() -> None:
    with pytest.raises(Preference):
        read(line({"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "b"}]}))
    with pytest.raises(BadRow) as refused:
        read(line({"prompt": "q", "chosen": "a", "rejected": None, "text": ["no"]}))
    assert not isinstance(refused.value, Preference)


def test_columns_are_renamed_before_the_format_is_found_and_others_stay() -> None:
    row = read(
        line({"question": "q", "answer": "a", "prompt": "not this"}), {"prompt": "question", "completion": "answer"}
    )
    assert row.messages == [QUESTION, ANSWER]
    assert read(line({"prompt": "q", "completion": "a"}), {"prompt": "question"}).messages == [QUESTION, ANSWER]


# ---- the same conversation in every format ----

TEXTS = st.text(alphabet='aü<|>\n"\\ ', min_size=1, max_size=20).filter(str.strip)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4)


def written_in_every_format(system: str | None, pairs: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """The conversation as each format writes it, made by hand."""
    beginning = [{"role": "system", "content": system}] if system else []
    turns_ = [{"role": r, "content": t} for pair in pairs for r, t in zip(("user", "assistant"), pair, strict=True)]
    sharegpt = [{"from": f, "value": t} for pair in pairs for f, t in zip(("human", "gpt"), pair, strict=True)]
    (question, answer), earlier = pairs[-1], [list(pair) for pair in pairs[:-1]]
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in turns_]
    written: dict[str, dict[str, Any]] = {
        "messages": {"messages": [*beginning, *turns_]},
        "text parts": {"messages": [*beginning, *parts], "tools": None},
        "sharegpt": {"conversations": sharegpt, "system": system},
        "sharegpt with a system turn": {
            "conversations": [*([{"from": "system", "value": system}] if system else []), *sharegpt]
        },
        "alpaca": {"instruction": question, "input": "", "output": answer, "system": system, "history": earlier},
    }
    if len(pairs) == 1:
        for column in ("completion", "response"):
            written[column] = {"prompt": question, column: answer, "system": system}
            written[f"{column} of messages"] = {"prompt": [*beginning, turns_[0]], column: [turns_[1]]}
    return written


@given(system=st.none() | TEXTS, pairs=PAIRS)
def test_a_conversation_is_the_same_in_whichever_format_it_is_written(
    system: str | None, pairs: list[tuple[str, str]]
) -> None:
    beginning = [{"role": "system", "content": system}] if system else []
    meant = beginning + [
        {"role": r, "content": t} for pair in pairs for r, t in zip(("user", "assistant"), pair, strict=True)
    ]
    found = {name: read(line(row)) for name, row in written_in_every_format(system, pairs).items()}
    assert {name: row.messages for name, row in found.items()} == dict.fromkeys(found, meant)
    assert len({row.digest for row in found.values()}) == 1
    again = read(line({"messages": found["sharegpt"].messages}))
    assert again.messages == meant


CALLS = st.lists(
    st.fixed_dictionaries({"name": TEXTS, "arguments": st.dictionaries(TEXTS, TEXTS | st.integers(0, 9), max_size=2)}),
    min_size=1,
    max_size=2,
)


@given(question=TEXTS, calls=CALLS, result=TEXTS, answer=TEXTS)
def test_tool_calls_are_the_same_in_both_formats_that_have_them(
    question: str, calls: list[dict[str, Any]], result: str, answer: str
) -> None:
    meant = [
        {"role": "user", "content": question},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": call} for call in calls]},
        {"role": "tool", "content": result},
        {"role": "assistant", "content": answer},
    ]
    given_ = {
        "human": question,
        "function_call": json.dumps(calls if len(calls) > 1 else calls[0]),
        "observation": result,
        "gpt": answer,
    }
    sharegpt = {"conversations": [{"from": role, "value": value} for role, value in given_.items()]}
    assert read(line(sharegpt)).messages == read(line({"messages": meant})).messages == meant


def test_the_digest_names_what_is_trained_whatever_the_format() -> None:
    digest = read(turns(QUESTION, ANSWER)).digest
    assert digest == read(line({"prompt": "q", "completion": "a", "id": 7})).digest
    assert digest == read(turns(QUESTION, {"content": "a", "role": "assistant", "train": True})).digest
    assert digest != read(turns(QUESTION, {**ANSWER, "train": False}, QUESTION, ANSWER)).digest


BAD_LINES = [
    (b'{"text": "a"', "not valid JSON at character 13"),
    (b'{"text": NaN}', "not valid JSON"),
    (b'{"text": "\xff"}', "not valid UTF-8 at byte 11"),
    (rb'{"text": "\ud800"}', "not valid JSON"),
    (b'{"text": "a\0"}', "NUL bytes"),
    (rb'{"text": "\u0000"}', "NUL characters"),
    (b'{"text": "a", "text": "b"}', "'text' stands twice"),
    (rb'{"text": "a", "text": "b\u0022\u0022\u0022"}', "'text' stands twice"),
    (b'{"x":' * 2000 + b"1" + b"}" * 2000, "nested too deeply"),
    (b'{"x":' * 300 + b"1" + b"}" * 300, "nested too deeply"),
    (b"[1]", "a list, not an object"),
    (b'"text"', "text, not an object"),
    (b"{}", "no known format has these columns: none"),
    (b'{"question": "q", "answer": "a"}', "no known format has these columns: answer, question"),
    (b'{"prompt": "q", "chosen": "a", "rejected": "b"}', "preference rows cannot be trained yet"),
    (b'{"text": "  "}', "the text is empty"),
    (b'{"text": 7}', "text is a number, not text"),
    (b'{"messages": "hello"}', "messages is text, not a list"),
    (b'{"messages": []}', "the row has no turns"),
    (turns("hello"), "turn 1 is text, not an object"),
    (turns({"role": "human", "content": "q"}), "the role of turn 1 is 'human'"),
    (turns({"content": "q"}), "the role of turn 1 is missing"),
    (turns(QUESTION, {"role": "assistant"}), "turn 2 (assistant) has no content"),
    (turns(QUESTION, {"role": "assistant", "content": 7}), "the content of turn 2 is a number"),
    (turns({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}), "other than text parts"),
    (turns(QUESTION, {"role": "assistant", "tool_calls": "f"}), "tool_calls of turn 2 is not a list of objects"),
    (
        turns(QUESTION, {"role": "assistant", "tool_calls": [{"arguments": {}}]}),
        "a tool call of turn 2 names no function",
    ),
    (turns(QUESTION, {**ANSWER, "reasoning_content": 7}), "reasoning_content of turn 2 is a number, not text"),
    (
        line({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f"}]}),
        "is not JSON",
    ),
    (line({"prompt": "q", "completion": "a", "label": False}), "preference rows cannot be trained yet"),
    (line({"chosen": [QUESTION, ANSWER], "rejected": "b"}), "chosen and rejected are not of one kind"),
    (line({"prompt": "q", "chosen": "a", "rejected": "a"}), "chosen and rejected are the same"),
    (line({"chosen": "a", "rejected": "b"}), "the prompt is missing"),
    (line({"prompt": "q", "chosen": 7, "rejected": "b"}), "chosen is a number, not text"),
    (turns(QUESTION, {"role": "assistant", "content": " \n"}), "the assistant's text is empty"),
    (turns(ANSWER), "turn 1 is assistant at the beginning"),
    (turns(QUESTION, SYSTEM, ANSWER), "turn 2 is system after user"),
    (turns(QUESTION, ANSWER, ANSWER), "turn 3 is assistant after assistant"),
    (turns(QUESTION, ANSWER, QUESTION), "ends with user"),
    (turns(QUESTION, {**ANSWER, "train": False}), "no assistant turn is to be trained"),
    (turns({**QUESTION, "train": True}, ANSWER), "turn 1 (user) cannot be trained"),
    (turns(QUESTION, {**ANSWER, "train": "no"}), "train of turn 2 is 'no'"),
    (line({"messages": [QUESTION, ANSWER], "tools": "f"}), "tools is not a list of objects"),
    (line({"conversations": [{"from": "human"}, {"from": "gpt", "value": "a"}]}), "turn 1 (user) has no content"),
    (
        line({"instruction": "q", "output": "a", "history": ["x", "y"]}),
        "entry 1 of history is not a question and its answer",
    ),
]


@pytest.mark.parametrize(("data", "reason"), BAD_LINES)
def test_a_bad_row_is_refused_with_a_reason_and_a_fix(data: bytes, reason: str) -> None:
    with pytest.raises(BadRow) as refused:
        read(data)
    assert reason in refused.value.reason
    assert refused.value.fix


def test_a_backslash_before_u0000_and_escaped_quotes_are_ordinary_text() -> None:
    assert read(rb'{"text": "\\u0000 \"x\" \u0022y\u0022"}').text == r'\u0000 "x" "y"'


COLUMNS = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "text",
    "tools",
    "role",
    "from",
    "content",
    "value",
    "train",
    *("instruction", "input", "output", "history", "system", "response", "label", "chosen", "rejected"),
    *("tool_calls", "function", "name", "arguments", "type", "weight", "reasoning_content"),
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "a", "[]", "{}", "text", "user", "assistant", "tool", "gpt", "human", "function_call"])
)
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(COLUMNS), v, max_size=4), max_leaves=12
)


@given(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=4))
def test_any_object_is_a_good_row_or_a_bad_row(row: dict[str, Any]) -> None:
    with contextlib.suppress(BadRow):
        good = read(line(row))
        assert good.text or good.trained_turns()
        assert len(good.digest) == 16


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_a_good_row_or_a_bad_row(data: bytes) -> None:
    with contextlib.suppress(BadRow):
        read(data)
