"""Good files of each kind, damaged at random: intake always ends with a verdict in words, and never with a crash."""

import gzip
import io
import json
from pathlib import Path

import pyarrow
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from daemon.core.paths import Workspace
from daemon.core.records import IntakeReport
from daemon.data import tokens
from daemon.data.intake import examine
from tests.helpers_data import chat, jsonl, make_job, make_workspace, rejected_rows, run_intake

ROWS = [chat(f"What is {i}?", f'It is "{i}",\nindeed.') for i in range(12)]
PAIRS = [{"prompt": f"What is {i}?", "completion": f"It is ü {i}."} for i in range(12)]
TABLE = "prompt,completion\n" + "".join(f'"{pair["prompt"]}","{pair["completion"]}"\n' for pair in PAIRS)


def as_parquet() -> bytes:
    data = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(PAIRS), data, row_group_size=5)
    return data.getvalue()


WHOLE = {
    "x.jsonl": jsonl(*ROWS),
    "x.json": json.dumps(PAIRS, indent=1).encode(),
    "x.csv": TABLE.encode(),
    "x.txt": b"One text.\n\nAnother text,\nof two lines.\n\n" * 4,
    "x.jsonl.gz": gzip.compress(jsonl(*ROWS), mtime=0),
    "x.csv.gz": gzip.compress(TABLE.encode(), mtime=0),
}
# Where, from the beginning to the end, and what: a bit that flips, a part that is lost or doubled, the end cut off.
INJURIES = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["flip", "lose", "double", "zero", "cut"]), st.integers(1, 200)),
    min_size=1,
    max_size=4,
)


def damage(data: bytes, injuries: list[tuple[float, str, int]]) -> bytes:
    for where, how, size in injuries:
        place = int(where * max(len(data) - 1, 0))
        before, part, after = data[:place], data[place : place + size], data[place + size :]
        flipped = bytes([part[0] ^ 1 << size % 8]) + part[1:] if part else b""
        changed = {"flip": flipped, "lose": b"", "double": part * 2, "zero": bytes(len(part)), "cut": b""}[how]
        data = before + changed + (b"" if how == "cut" else after)
    return data


def assert_a_verdict(folder: Path) -> None:
    report = IntakeReport.load(folder / "report.json")
    assert report is not None
    refused = rejected_rows(folder)
    assert all(row["line"] > 0 and row["reason"] and row["fix"] for row in refused)
    assert len(refused) == report.bad_rows + report.too_long_rows
    if report.usable:
        meta = tokens.read_meta(folder / "tokens")
        assert meta is not None and meta.rows == report.rows > 0
    else:
        assert report.reason and report.remedy and not (folder / "tokens").exists()


@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=50, deadline=None)
@given(injuries=INJURIES)
def test_a_damaged_file_gets_a_verdict(
    tmp_path_factory: pytest.TempPathFactory, name: str, injuries: list[tuple[float, str, int]]
) -> None:
    workspace = _workspace(tmp_path_factory)
    folder = make_job(workspace, damage(WHOLE[name], injuries), name)
    examine(Workspace.at(workspace), folder)
    assert_a_verdict(folder)


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(injuries=INJURIES)
def test_a_damaged_table_of_pyarrow_gets_a_verdict(
    tmp_path_factory: pytest.TempPathFactory, injuries: list[tuple[float, str, int]]
) -> None:
    """In the real process with its limits: what is damaged there may ask for any amount of memory."""
    workspace = _workspace(tmp_path_factory)
    folder = make_job(workspace, damage(as_parquet(), injuries), "x.parquet")
    run_intake(workspace, folder)
    assert_a_verdict(folder)


def _workspace(factory: pytest.TempPathFactory, made: list[Path] = []) -> Path:  # noqa: B006 - one for all examples
    if not made:
        made.append(make_workspace(factory.mktemp("damaged") / "w", max_bad_row_percent=50))
    return made[0]
