"""On the real templates of model families: the tokens are those of transformers, and the assistant's text is trained.

What is expected is built from the raw messages, by hand (tests/helpers_conversations.py); the code under test has no
part in it.
"""

from functools import cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from daemon.data.encoding import Encoded
from daemon.data.formats import normalise
from daemon.data.render import Renderer
from tests.helpers_conversations import (
    Conversation,
    conversations,
    decoded_runs,
    expected_texts,
    for_transformers,
    transformers_ids,
)
from tests.helpers_families import FAMILIES, family_tokenizer, make_family_folder


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
    return decoded_runs(name, encoded.ids, encoded.mask)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_trained_is_what_the_assistant_says(folders: dict[str, Path], name: str) -> None:
    for talk in conversations(name):
        assert trained_texts(name, encode(folders[name], talk)) == expected_texts(FAMILIES[name], talk), talk


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tokens_are_those_of_transformers(folders: dict[str, Path], name: str) -> None:
    family = FAMILIES[name]
    theirs = AutoTokenizer.from_pretrained(folders[name])
    for talk in conversations(name):
        assert encode(folders[name], talk).ids == transformers_ids(theirs, family, talk), talk


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


@pytest.mark.parametrize("name", FAMILIES)
def test_the_conversations_have_all_that_is_hard(name: str) -> None:
    family, talks = FAMILIES[name], conversations(name)
    contents = [m.get("content") or "" for talk in talks for m in talk.messages]
    answers = [m.get("content") or "" for talk in talks for m in talk.messages if m["role"] == "assistant"]
    assert len(talks) == 200
    assert any(text != text.strip() for text in contents) and any(text != text.strip() for text in answers)
    assert any("<think>\n\n</think>" in text for text in answers) and any("<think>\nP" in text for text in answers)
    assert {sum(m["role"] == "user" for m in talk.messages) for talk in talks} == {1, 2, 3, 4}
    assert all(any(marker in text for text in answers) for marker in family.special)
    assert any("tool_calls" in m for talk in talks for m in talk.messages) == (family.tools is not None)
