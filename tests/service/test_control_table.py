"""Every wish in every state is answered as docs/reference/control.md says."""

import re
from pathlib import Path

import pytest

from tests.helpers_control_table import STATES, WISHES, answer

PAGE = (Path(__file__).parent.parent.parent / "docs/reference/control.md").read_text()
CELL = re.compile(r"^\| (.+?) \| (\d+) \| (.+) \|$", re.MULTILINE)


def described() -> dict[str, dict[str, tuple[int, str]]]:
    """The page's tables; `python -m tests.helpers_control_table` prints them as they are."""
    sections = re.split(r"^### `(.+)`$", PAGE, flags=re.MULTILINE)[1:]
    tables = zip(sections[::2], sections[1::2], strict=True)
    return {words: {state: (int(code), said) for state, code, said in CELL.findall(text)} for words, text in tables}


def test_the_page_has_every_wish_and_every_state() -> None:
    assert {words: list(states) for words, states in described().items()} == {words: list(STATES) for words in WISHES}


@pytest.mark.parametrize("words", WISHES)
def test_each_wish_is_answered_as_the_page_says(words: str, tmp_path: Path) -> None:
    for number, state in enumerate(STATES):
        assert (state, answer(tmp_path / str(number), state, words)) == (state, described()[words][state])
