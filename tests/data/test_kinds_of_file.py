"""Every kind of file gives the same rows; damaged, packed and huge ones are refused in words, in flat memory."""

import csv
import gzip
import hashlib
import io
import json
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from daemon.core.config import Settings
from daemon.core.records import IntakeReport
from daemon.data.lines import UnusableFile, parse
from daemon.data.sources import Source, kind_of_file
from tests.data.test_intake import peak_megabytes
from tests.helpers_data import (
    chat,
    intake_command,
    intake_environment,
    jsonl,
    make_job,
    make_workspace,
    rejected_rows,
    run_intake,
)
from tests.helpers_processes import process, said

ROWS = [{"prompt": f"What is {i}?", "completion": f'It is "{i}",\nindeed.'} for i in range(20)]
SETTINGS = Settings(model_name="m", base_model="b")


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    data = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), data, row_group_size=7)
    return data.getvalue()


def rows_of(path: Path, **changes: Any) -> list[tuple[int, Any]]:
    source = Source(path, SETTINGS.model_copy(update=changes))
    return [(line.number, parse(line.data)) for line in source]


def put(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


KINDS = {
    "x.jsonl": jsonl(*ROWS),
    "x.jsonl.gz": gzip.compress(jsonl(*ROWS), mtime=0),
    "x.json": json.dumps(ROWS, indent=2).encode(),
    "object.json": json.dumps({"version": 1, "data": ROWS, "info": {"by": "x"}}).encode(),
    "lines.json": jsonl(*ROWS),
    "x.json.gz": gzip.compress(json.dumps(ROWS).encode(), mtime=0),
    "x.csv": as_csv(ROWS),
    "semicolons.csv": as_csv(ROWS, ";"),
    "x.csv.gz": gzip.compress(b"\xef\xbb\xbf" + as_csv(ROWS), mtime=0),
    "x.parquet": as_parquet(ROWS),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_same_rows_are_read_from_every_kind_of_file(tmp_path: Path, name: str) -> None:
    workspace = make_workspace(tmp_path / "w")
    report = run_intake(workspace, make_job(workspace, KINDS[name], name))
    assert (report.usable, report.rows, report.bad_rows, report.format) == (True, 20, 0, "prompt/completion")
    assert (report.sha256, report.bytes) == (hashlib.sha256(KINDS[name]).hexdigest(), len(KINDS[name]))
    assert [row for _, row in rows_of(put(tmp_path, name, KINDS[name]))] == ROWS


def test_blocks_of_plain_text_between_blank_lines_are_rows(tmp_path: Path) -> None:
    path = put(tmp_path, "x.txt", b"\n\none\ntwo\r\n\n \n\nthree")
    assert rows_of(path) == [(3, {"text": "one\ntwo"}), (8, {"text": "three"})]


@pytest.mark.parametrize(
    ("name", "number"), [("x.csv", 42), ("x.json", 21), ("x.parquet", 21), ("x.jsonl.gz", 21), ("x.txt", 3)]
)
def test_a_bad_row_is_listed_with_its_line_element_or_row(tmp_path: Path, name: str, number: int) -> None:
    bad = {"prompt": "in two\nlines", "completion": ""}
    made = {
        "x.csv": as_csv([*ROWS, bad]),
        "x.json": json.dumps([*ROWS, bad]).encode(),
        "x.parquet": as_parquet([*ROWS, bad]),
        "x.jsonl.gz": gzip.compress(jsonl(*ROWS, bad), mtime=0),
        "x.txt": b"good\n\n\xff\n\n" + b"good\n\n" * 20,
    }
    workspace = make_workspace(tmp_path / "w")
    folder = make_job(workspace, made[name], name)
    report = run_intake(workspace, folder)
    assert (report.usable, report.bad_rows, [row["line"] for row in rejected_rows(folder)]) == (True, 1, [number])
    assert report.numbered == {"x.json": "element", "x.parquet": "row"}.get(name, "line")


DAMAGED = [
    ("x.jsonl.gz", gzip.compress(jsonl(*ROWS), mtime=0)[:-20], "not whole: its compressed data ends too early"),
    ("x.jsonl.gz", jsonl(*ROWS), "the compressed data is damaged: Not a gzipped file"),
    ("x.jsonl.gz", gzip.compress(b"x" * 99, mtime=0)[:20] + b"\xff" * 20, "the compressed data is damaged"),
    ("x.json", json.dumps(ROWS).encode()[:-1], "not whole: it ends inside element 20"),
    ("x.json", json.dumps(ROWS).encode()[:-9], "not whole: it ends inside element 20"),
    ("x.json", b'{"a": [{}], "b": [{}]}', "more than one list"),
    ("x.json", b'{"a": 1}', "holds no list of rows"),
    ("x.json", b'"text"', "neither a JSON array nor an object"),
    ("x.json", b"[{}] [{}]", "more after the end"),
    ("x.json", b"[" * ((1 << 20) + 2), "element 1 is nested too deeply"),
    ("x.json", b"[{}]]", "a bracket is closed that was never opened"),
    ("x.csv", b'text,b\n"never closed,1\nx,2\n', "the quotation mark that opens in line 2 is never closed"),
    ("x.csv", b"text,text\na,b\n", "a name twice"),
    ("x.csv", b"text,\na,b\n", "a column without a name"),
    ("x.parquet", as_parquet(ROWS)[:-9], "no Parquet file"),
    ("x.parquet", b"", "the file is empty"),
    ("x.zip", b"PK", ".zip is not a kind of file that can be read"),
]


@pytest.mark.parametrize(("name", "data", "reason"), DAMAGED)
def test_a_damaged_file_is_refused_and_nothing_of_it_is_trained(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    workspace = make_workspace(tmp_path / "w")
    folder = make_job(workspace, data, name)
    report = run_intake(workspace, folder)
    assert (report.usable, report.sha256) == (False, hashlib.sha256(data).hexdigest())
    assert reason in (report.reason or "")
    assert report.remedy
    assert not (folder / "tokens").exists()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"a,b,c\n", "the row has 3 fields, the header has 2"),
        (b'"a"b,c\n', "not valid CSV"),
        (b"a,\xff\n", "not valid UTF-8 at byte 3"),
        (b"a," + b"x" * 3000 + b"\n", "longer than 2,000 bytes"),
        (b"a,\0\n", "NUL"),
    ],
)
def test_a_bad_row_of_a_table_does_not_spoil_the_next_one(tmp_path: Path, row: bytes, reason: str) -> None:
    workspace = make_workspace(tmp_path / "w", max_row_bytes=2000, max_bad_row_percent=50)
    folder = make_job(workspace, b"prompt,completion\nq,a\n" + row + b"q,b\n", "x.csv")
    assert run_intake(workspace, folder).rows == 2
    assert reason in rejected_rows(folder)[0]["reason"]


def test_a_quotation_mark_left_open_does_not_swallow_the_rest_in_memory(tmp_path: Path) -> None:
    path = put(tmp_path, "x.csv", b'text\n"' + b"x\n" * 5000)
    with pytest.raises(UnusableFile, match="begins in line 2 does not end within 2,000 bytes"):
        rows_of(path, max_row_bytes=2000)


def test_columns_with_other_names_are_understood_by_the_map(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", column_map={"prompt": "question", "completion": "answer"})
    folder = make_job(workspace, b"question,answer\nq,a\n", "x.csv")
    first = run_intake(workspace, folder)
    assert (first.usable, first.format) == (True, "prompt/completion")
    swapped = make_job(workspace, b"question,answer\nq,a\n", "x.csv", column_map={"prompt": "answer"})
    assert "completion" not in (run_intake(workspace, swapped).format or "")
    other = make_workspace(tmp_path / "other")
    again = make_job(other, b"prompt,completion\nq,a\n", "x.csv")
    assert run_intake(other, again).cache_key != first.cache_key


def test_lists_of_turns_in_a_table_are_read_as_json(tmp_path: Path) -> None:
    turns = json.dumps(chat("q", "a")["messages"])
    workspace = make_workspace(tmp_path / "w")
    folder = make_job(workspace, as_csv([{"messages": turns, "tools": ""}]), "x.csv")
    assert run_intake(workspace, folder).format == "messages"


def test_without_pyarrow_a_parquet_file_is_refused_with_what_to_install(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    folder = make_job(workspace, as_parquet(ROWS), "x.parquet")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "pyarrow.py").write_text("raise ImportError('hidden')\n")
    environment = intake_environment()
    environment["PYTHONPATH"] = f"{hidden}:{environment['PYTHONPATH']}"
    subprocess.run(intake_command(workspace, folder), env=environment, check=True)
    report = IntakeReport.load(folder / "report.json")
    assert report is not None
    assert not report.usable
    assert "pip install training-daemon[parquet]" in (report.remedy or "")


def bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([packer.compress(b"x" * 2**20) for _ in range(megabytes)]) + packer.flush()


def test_a_packed_bomb_of_one_line_is_a_bad_row_in_flat_memory(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", max_row_bytes=2**20)
    folder = make_job(workspace, bomb(60), "x.jsonl.gz")
    assert peak_megabytes(workspace, folder) < 70
    assert "longer than 1,048,576 bytes" in rejected_rows(folder)[0]["reason"]


def test_a_bomb_is_not_unpacked_to_its_end(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    report = run_intake(workspace, make_job(workspace, bomb(65), "x.jsonl.gz"))
    assert "unpacks to more than 200 times its size" in (report.reason or "")


def test_a_file_that_unpacks_to_more_than_allowed_is_refused(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", max_unpacked_bytes=10 * 2**20)
    report = run_intake(workspace, make_job(workspace, bomb(11), "x.jsonl.gz"))
    assert "unpacks to more than 10,485,760 bytes" in (report.reason or "")
    assert "max_unpacked_bytes" in (report.remedy or "")


READ = """
import sys
from pathlib import Path
from daemon.data.tables import read_parquet
rows = sum(1 for _ in read_parquet(Path(sys.argv[1]), 8 << 20))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # of this program alone
print(rows, int(peak.split()[1]) >> 10)
"""


def test_a_small_table_of_long_rows_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    text = pyarrow.array(["x" * (6 << 20)])
    table = pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays([0] * 64, text)})
    parquet.write_table(table, tmp_path / "x.parquet", compression="zstd")
    assert (tmp_path / "x.parquet").stat().st_size < 10_000
    with process(READ, tmp_path / "x.parquet") as child:
        rows, megabytes = map(int, said(child).split())
    assert rows == 64
    assert megabytes < 300  # 768 with all rows decoded at once, twice


def test_an_array_of_a_hundred_megabytes_needs_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", max_row_bytes=2**20, max_bad_row_percent=50)
    rows = json.dumps(ROWS).encode()[:-1]
    folder = make_job(workspace, rows + b', "' + b"x" * 100 * 2**20 + b'"]', "x.json")
    assert peak_megabytes(workspace, folder) < 70
    assert [row["line"] for row in rejected_rows(folder)] == [21]


def test_the_ending_decides_whatever_its_case() -> None:
    assert [kind_of_file(name) for name in ("a.JSONL", "a.jsonl.GZ", "a.parquet.gz", "jsonl")] == [
        ".jsonl",
        ".jsonl.gz",
        None,
        None,
    ]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab"\\[]{},ü\n', max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(rows=st.lists(VALUES, max_size=6), indent=st.none() | st.integers(0, 2), wrapped=st.booleans())
def test_elements_are_cut_out_as_a_parser_would(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], indent: int | None, wrapped: bool
) -> None:
    text = json.dumps({"n": {"k": 1}, "rows": rows} if wrapped else rows, indent=indent, ensure_ascii=False)
    path = put(tmp_path_factory.mktemp("json"), "x.json", text.encode())
    found = [json.loads(line.data) for line in Source(path, SETTINGS)]
    assert found == rows


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_elements_are_found_wherever_a_chunk_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("daemon.data.elements.CHUNK", chunk)
    rows = [{"text": 'a "\\" [b], {c}'}, {"text": "\\"}, {"deep": [[{"x": []}]]}]
    path = put(tmp_path, "x.json", json.dumps({"meta": {"a": 1}, "rows": rows}).encode())
    assert [row for _, row in rows_of(path)] == rows
