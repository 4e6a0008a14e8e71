"""The files of data/benchmarks are read by intake once; one that cannot be used stops no training file."""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from daemon.core import config, files
from daemon.core.paths import Workspace
from daemon.data import suites, tokens
from tests import helpers_data
from tests.helpers_data import chat, jsonl, make_job, make_workspace, run_intake

ROWS = jsonl(*(chat(f"What is {n}?", f"It is {n}.") for n in range(9)))
QUESTION = {"messages": [{"role": "user", "content": "What is 9?"}]}


def make(root: Path, **contents: bytes) -> Workspace:
    """A workspace with these suites, and a job to be read."""
    workspace = Workspace.at(make_workspace(root, max_row_bytes=4096))
    workspace.benchmarks.mkdir()
    for name, content in contents.items():
        (workspace.benchmarks / f"{name}.jsonl").write_bytes(content)
    make_job(workspace.root, ROWS)
    return workspace


def read(workspace: Workspace) -> Any:
    return run_intake(workspace.root, workspace.queue / "normal" / "20260101T000000-0001-x")


def found(workspace: Workspace) -> dict[str, Path]:
    """The token caches of the suites, by name."""
    settings, _ = config.load(workspace.config, {})
    return {suite.name: workspace.root / suite.folder for suite in suites.listed(workspace, settings)}


def expected(folder: Path) -> list[str]:
    """What each row of a cache expects, as text."""
    meta = tokens.read_meta(folder)
    assert meta
    tokenizer = helpers_data.Tokenizer.from_str(helpers_data.small_tokenizer())
    ids, mask = (folder / tokens.IDS).read_bytes(), (folder / tokens.MASK).read_bytes()
    places = [int.from_bytes((folder / tokens.ROWS).read_bytes()[8 * n :][:8], "little") for n in range(meta.rows + 1)]
    numbers = [int.from_bytes(ids[4 * n : 4 * n + 4], "little") for n in range(meta.tokens)]
    return [tokenizer.decode([numbers[n] for n in range(start, end) if mask[n]]) for start, end in pairwise(places)]


def test_an_answer_stands_in_its_turn_beside_the_question_or_after_the_prompt(tmp_path: Path) -> None:
    rows = jsonl(chat("Who?", "Me."), {**QUESTION, "expected": "Nine."}, {"prompt": "2?", "expected": "Two."})
    workspace = make(tmp_path, s=rows)
    read(workspace)
    assert expected(found(workspace)["s"]) == ["Me.", "Nine.", "Two."]


def test_of_a_conversation_the_last_answer_is_expected_and_of_a_text_all_of_it(tmp_path: Path) -> None:
    turns = [*chat("One?", "First.")["messages"], *chat("Two?", "Second.")["messages"]]
    workspace = make(tmp_path, s=jsonl({"messages": turns}, {"text": "All of it"}))
    read(workspace)
    assert expected(found(workspace)["s"]) == ["Second.", "All of it"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it has none"),
        (b"\x89PNG\r\n", "line 1: not valid UTF-8"),
        (b'{"messages": [', "line 1: not valid JSON"),
        (jsonl(QUESTION), "line 1: "),
        (jsonl({**QUESTION, "expected": 7}), "line 1: "),
        (jsonl(chat("Who?", "word " * 4000)), "line 1: the row is longer than 4,096 bytes"),
        (jsonl(chat("Who?", "a b c d e f " * 300)), "line 1: the row has "),
    ],
)
def test_a_suite_that_cannot_be_used_says_why_and_stops_no_file(tmp_path: Path, content: bytes, why: str) -> None:
    workspace = make(tmp_path, s=content)
    assert read(workspace).usable
    meta = suites.read_meta(found(workspace)["s"])
    assert meta and meta.rows == 0 and (meta.reason or "").startswith(f"no row of s.jsonl can be used: {why}")


def test_bad_rows_of_a_suite_are_counted_and_the_others_are_used(tmp_path: Path) -> None:
    workspace = make(tmp_path, s=jsonl(chat("Who?", "Me.")) + b"{half\n" + jsonl(QUESTION))
    read(workspace)
    meta = suites.read_meta(found(workspace)["s"])
    assert meta and (meta.rows, meta.left_out_rows, meta.reason) == (1, 2, None)


def test_a_suite_that_nobody_may_read_or_that_is_a_folder_is_none(tmp_path: Path) -> None:
    workspace = make(tmp_path, s=ROWS)
    (workspace.benchmarks / "folder.jsonl").mkdir()
    (workspace.benchmarks / "gone.jsonl").symlink_to("nowhere")
    (workspace.benchmarks / ".hidden.jsonl").write_bytes(ROWS)
    assert read(workspace).usable
    assert list(found(workspace)) == ["s"]


def test_a_suite_is_read_once_and_anew_when_it_or_the_settings_change(tmp_path: Path) -> None:
    workspace = make(tmp_path, s=ROWS, t=jsonl(chat("Who?", "Me.")))
    read(workspace)
    before = {name: (folder / suites.META).stat().st_ino for name, folder in found(workspace).items()}
    (workspace.benchmarks / "t.jsonl").write_bytes(jsonl(chat("Who?", "You.")))
    read(workspace)
    after = {name: (folder / suites.META).stat().st_ino for name, folder in found(workspace).items()}
    assert before["s"] == after["s"] and expected(found(workspace)["t"]) == ["You."]
    assert len(list(workspace.benchmarks.glob(".tokens-*"))) == 2, "what is of no suite any more is cleared away"
    old = found(workspace)["s"]
    workspace.config.write_text(json.dumps({**json.loads(workspace.config.read_text()), "max_length": 256}))
    read(workspace)
    assert found(workspace)["s"] != old and not old.exists()


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    workspace = make(tmp_path, s=ROWS)
    read(workspace)
    folder = found(workspace)["s"]
    os.truncate(folder / tokens.IDS, 7)
    (workspace.benchmarks / ".stage-left").mkdir()
    read(workspace)
    meta = tokens.read_meta(folder)
    assert meta and tokens.check(folder, meta.key, meta.data_sha256, deep=True) is None
    assert files.leftovers(workspace.benchmarks) == []


def test_two_suites_of_the_same_content_share_a_cache_and_have_their_own_names(tmp_path: Path) -> None:
    workspace = make(tmp_path, s=ROWS, t=ROWS)
    read(workspace)
    assert sorted(found(workspace)) == ["s", "t"] and len(set(found(workspace).values())) == 1


def test_a_suite_with_a_name_that_results_yaml_has_already_keeps_its_ending(tmp_path: Path) -> None:
    assert list(found(make(tmp_path, holdout=ROWS, throughput=ROWS))) == ["holdout.jsonl", "throughput.jsonl"]


def test_rows_of_a_file_that_stand_in_a_suite_are_a_warning(tmp_path: Path) -> None:
    shared = {"messages": [{"role": "user", "content": "What is 3?"}], "expected": "It is 3."}
    workspace = make(tmp_path, s=jsonl(shared, chat("Who?", "Me.")))
    assert any("1 of these rows" in warning for warning in read(workspace).warnings)
    (workspace.benchmarks / "s.jsonl").unlink()
    assert read(workspace).warnings == []
