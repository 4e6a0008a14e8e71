"""Whatever a conversation says: what the assistant says is trained, and the tokens are those of transformers."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from daemon.data.formats import normalise
from daemon.data.render import Renderer
from tests.helpers_conversations import Conversation, decoded_runs, expected_texts, transformers_ids
from tests.helpers_families import FAMILIES, make_family_folder

# Text as it is; text stripped; text as SentencePiece has it, which writes ▁ for a space and reads it as one.
NAMES = ("qwen3", "llama3_1", "gemma2")
MARKERS = sorted({token for name in NAMES for token in (*FAMILIES[name].special, *FAMILIES[name].plain)})
# NUL and the last characters for private use are refused in words.
LETTERS = st.characters(exclude_categories=["Cs", "Co"], exclude_characters="\0▁")
PIECES = st.text(LETTERS, max_size=6) | st.sampled_from([*MARKERS, "assistant", "\n", "\n\n", " ", "<|im_", "end|>"])
TEXTS = st.lists(PIECES, min_size=1, max_size=6).map("".join)
SAID = TEXTS.filter(lambda text: text.strip())


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Renderer, object]:
    folder: Path = make_family_folder(tmp_path_factory.mktemp("family"), request.param)
    return request.param, Renderer(folder), AutoTokenizer.from_pretrained(folder)


@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(st.tuples(TEXTS, SAID), min_size=1, max_size=3), untrained=st.integers(0, 3))
def test_any_text_is_trained_as_it_is(family: tuple, pairs: list[tuple[str, str]], untrained: int) -> None:
    name, renderer, theirs = family
    messages = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    if untrained < len(pairs) - 1:
        messages[2 * untrained + 1]["train"] = False
    quotes = any(marker in text for marker in FAMILIES[name].special for pair in pairs for text in pair)
    talk = Conversation(messages, None, None, quotes)
    (encoded,) = renderer.encode([renderer.draft(normalise(talk.row))])
    assert decoded_runs(name, encoded.ids, encoded.mask) == expected_texts(FAMILIES[name], talk)
    assert list(encoded.ids) == transformers_ids(theirs, FAMILIES[name], talk)
