"""Intake as the daemon runs it: a job's folder in, report card, rejected rows and token cache out."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import pytest

from daemon.core import config
from daemon.core.errors import Exit
from daemon.core.paths import Workspace
from daemon.core.records import IntakeReport
from daemon.data import tokens
from daemon.data.holdout import holdout_folder, holdout_key
from tests.helpers_data import (
    chat,
    intake_command,
    intake_environment,
    jsonl,
    make_job,
    make_workspace,
    rejected_rows,
    run_intake,
    start_intake,
)

BAD = b'{"messages": []}\n'


def good_rows(count: int) -> list[dict[str, Any]]:
    return [chat(f"What is {i}?", f"It is {i}.") for i in range(count)]


def settings_of(workspace: Path) -> config.Settings:
    return config.load(workspace / "config.json", {})[0]


def current_holdout(workspace: Path) -> Path:
    key = holdout_key(Workspace(workspace), settings_of(workspace))
    assert key is not None
    return holdout_folder(Workspace(workspace), key)


def test_a_good_file_becomes_a_report_and_a_cache_that_fits_it(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", effective_batch_size=8)
    data = jsonl(*good_rows(10), good_rows(1)[0])
    folder = make_job(workspace, data, epochs=3)
    report = run_intake(workspace, folder)
    assert (report.usable, report.format, report.rows, report.duplicate_rows) == (True, "messages", 11, 1)
    assert (report.sha256, report.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert report.estimated_steps == 5
    assert report.cache_key == tokens.key(workspace / "models/base/small", settings_of(workspace))
    assert tokens.check(folder / "tokens", report.cache_key, report.sha256, deep=True) is None
    meta = tokens.read_meta(folder / "tokens")
    assert meta is not None
    assert (meta.rows, meta.tokens, meta.trained_tokens) == (11, report.tokens, report.trained_tokens)
    assert 0 < report.trained_tokens < report.tokens


def test_rows_of_different_formats_may_stand_in_one_file(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    folder = make_job(workspace, jsonl({"text": "t"}, *good_rows(2)))
    assert run_intake(workspace, folder).format == "messages, text"


def test_bad_rows_are_listed_with_line_reason_fix_and_beginning(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", max_bad_row_percent=50, max_row_bytes=500)
    good = jsonl(*good_rows(2))
    long = jsonl(chat("q", "x" * 600))
    folder = make_job(workspace, good + b"\n" + BAD + long + b"not json\n" + good + b'{"text": "\xff"}\n')
    report = run_intake(workspace, folder)
    rejected = rejected_rows(folder)
    assert [row["line"] for row in rejected] == [4, 5, 6, 9]
    assert [row["row"][:9] for row in rejected] == ['{"message', '{"message', "not json", '{"text": ']
    assert "longer than 500 bytes" in rejected[1]["reason"]
    assert max(len(row["row"]) for row in rejected) <= 200
    assert all(row["fix"] for row in rejected)
    assert (report.usable, report.rows, report.bad_rows) == (True, 4, 4)
    assert array("Q", (folder / "tokens/lines.bin").read_bytes()).tolist() == [1, 2, 7, 8]


@pytest.mark.parametrize(("bad", "limit", "usable"), [(6, 6, True), (4, 3, False), (1, 0, False), (0, 0, True)])
def test_how_many_rows_may_be_bad_is_a_setting(tmp_path: Path, bad: int, limit: int, usable: bool) -> None:
    workspace = make_workspace(tmp_path / "w", max_bad_row_percent=limit)
    report = run_intake(workspace, make_job(workspace, jsonl(*good_rows(100 - bad)) + BAD * bad))
    assert (report.usable, report.rows, report.bad_rows) == (usable, 100 - bad, bad)
    assert usable or f"{limit} % may be" in (report.reason or "")


@pytest.mark.parametrize(("bad", "usable"), [(5, True), (6, False)])
def test_a_file_may_have_five_bad_rows_in_a_hundred_but_not_six(tmp_path: Path, bad: int, usable: bool) -> None:
    workspace = make_workspace(tmp_path / "w")
    folder = make_job(workspace, jsonl(*good_rows(100 - bad)) + BAD * bad)
    report = run_intake(workspace, folder)
    assert (report.usable, (folder / "tokens").exists(), report.cache_key is not None) == (usable, usable, usable)
    if not usable:
        assert report.reason is not None
        assert report.remedy is not None
        assert "6 of 100 (6 %) rows are bad" in report.reason
        assert "line 95: the row has no turns" in report.reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"\n \n\r\n", "the file is empty"),
        (os.urandom(5000) + b"\n", "rows are bad"),
        (b"\0" * 100, "the line contains NUL bytes"),
        ("ü\n".encode("utf-16"), "rows are bad"),
    ],
)
def test_garbage_is_unusable_with_reason_and_remedy(tmp_path: Path, data: bytes, reason: str) -> None:
    workspace = make_workspace(tmp_path / "w")
    report = run_intake(workspace, make_job(workspace, data))
    assert not report.usable
    assert reason in (report.reason or "")
    assert report.remedy


@pytest.mark.parametrize("cut", [1, 20])
def test_a_truncated_file_is_recognised(tmp_path: Path, cut: int) -> None:
    workspace = make_workspace(tmp_path / "w")
    data = jsonl(*good_rows(30))
    folder = make_job(workspace, data[: -1 - cut])
    report = run_intake(workspace, folder)
    assert (report.usable, report.rows, report.bad_rows) == (True, 29, 1)
    assert any("seems cut off" in warning for warning in report.warnings)
    assert "the file seems cut off" in rejected_rows(folder)[0]["reason"]


def test_a_last_line_without_newline_is_a_row_like_any_other(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    assert run_intake(workspace, make_job(workspace, jsonl(*good_rows(3))[:-1])).rows == 3


@pytest.mark.parametrize(
    ("name", "data"), [("x.zip", gzip.compress(b"{}", mtime=0)), ("x.docx", b"a,b\n"), ("x", b"{}")]
)
def test_another_kind_of_file_is_unusable_with_a_remedy(tmp_path: Path, name: str, data: bytes) -> None:
    workspace = make_workspace(tmp_path / "w")
    report = run_intake(workspace, make_job(workspace, data, name))
    assert not report.usable
    assert report.sha256 == hashlib.sha256(data).hexdigest()
    assert ".jsonl" in (report.remedy or "")


# ---- length ----


def mixed_lengths(short: int, long: int) -> bytes:
    return jsonl(*good_rows(short), *(chat(f"q{i}", "word " * 100 * (i + 1)) for i in range(long)))


def test_too_long_rows_are_left_out_and_listed_but_not_bad(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", max_length=100)
    folder = make_job(workspace, mixed_lengths(18, 2))
    report = run_intake(workspace, folder)
    assert (report.usable, report.rows, report.bad_rows, report.too_long_rows) == (True, 18, 0, 2)
    assert report.longest_row > 400
    assert "2 of 20 (10 %) rows are longer than max_length 100 and left out" in report.warnings
    assert [row["line"] for row in rejected_rows(folder)] == [19, 20]


def test_too_long_rows_are_cut_where_truncate_is_chosen(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", max_length=100, excess_length="truncate")
    folder = make_job(workspace, mixed_lengths(18, 1) + jsonl(chat("question " * 100, "never reached")))
    report = run_intake(workspace, folder)
    meta = tokens.read_meta(folder / "tokens")
    assert meta is not None
    assert (report.rows, report.too_long_rows, meta.longest_row) == (19, 2, 100)
    assert [row["line"] for row in rejected_rows(folder)] == [20]


def test_too_long_rows_are_bad_where_reject_is_chosen(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", max_length=100, excess_length="reject")
    report = run_intake(workspace, make_job(workspace, mixed_lengths(18, 2)))
    assert (report.usable, report.bad_rows, report.too_long_rows) == (False, 2, 2)


def test_too_many_too_long_rows_park_the_file_with_the_length_that_fits(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", max_length=100)
    folder = make_job(workspace, mixed_lengths(7, 3))
    report = run_intake(workspace, folder)
    assert (report.usable, report.too_long_rows) == (False, 3)
    assert f"set max_length to {report.longest_row} " in (report.remedy or "")
    make_again = make_workspace(tmp_path / "again", max_length=report.longest_row)
    assert run_intake(make_again, make_job(make_again, mixed_lengths(7, 3))).rows == 10


def test_the_length_that_is_proposed_is_the_smallest_that_is_enough(tmp_path: Path) -> None:
    """Enough is, what makes no warning: with it one row in 20 is too long at most."""
    data = jsonl(*good_rows(14), *(chat(f"q{i}", "word " * 100 * (i + 1)) for i in range(6)))
    first = make_workspace(tmp_path / "first", max_length=100)
    refused = run_intake(first, make_job(first, data))
    fits = refused.fitting_max_length
    assert fits is not None and 100 < fits < refused.longest_row
    assert f"set max_length to {fits} in config.json ({refused.longest_row} for every row to fit)" in (
        refused.remedy or ""
    )
    reports = []
    for length in (fits, fits - 1):
        workspace = make_workspace(tmp_path / str(length), max_length=length)
        reports.append(run_intake(workspace, make_job(workspace, data)))
    assert [(report.usable, report.too_long_rows, len(report.warnings)) for report in reports] == [
        (True, 1, 0),
        (True, 2, 1),
    ]


def test_how_many_rows_may_be_too_long_is_a_setting(tmp_path: Path) -> None:
    for percent, usable in ((30, True), (29, False)):
        workspace = make_workspace(tmp_path / str(percent), max_length=100, block_truncation_percent=percent)
        assert run_intake(workspace, make_job(workspace, mixed_lengths(7, 3))).usable is usable


# ---- holdout ----


def test_rows_of_the_holdout_are_never_trained_and_not_counted_as_bad(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    rows = good_rows(10)
    (workspace / "data/validation/h.jsonl").write_bytes(jsonl(*rows[:4]))
    as_prompts = [{"prompt": r["messages"][0]["content"], "completion": r["messages"][1]["content"]} for r in rows]
    folder = make_job(workspace, jsonl(*as_prompts))
    report = run_intake(workspace, folder)
    assert (report.usable, report.rows, report.holdout_rows, report.bad_rows) == (True, 6, 4, 0)
    assert [row["line"] for row in rejected_rows(folder)] == [1, 2, 3, 4]


def test_the_holdout_is_tokenised_once_and_anew_when_it_changes(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    (workspace / "data/validation/b.jsonl").write_bytes(jsonl(*good_rows(4)))
    run_intake(workspace, make_job(workspace, jsonl(chat("q", "a"))))
    first = current_holdout(workspace)
    written = (first / "tokens.json").stat().st_mtime_ns
    run_intake(workspace, make_job(workspace, jsonl(chat("q", "a"))))
    assert (first / "tokens.json").stat().st_mtime_ns == written
    (workspace / "data/validation/a.jsonl").write_bytes(jsonl(chat("new", "row")) + BAD)
    report = run_intake(workspace, make_job(workspace, jsonl(chat("q", "a"))))
    meta = tokens.read_meta(current_holdout(workspace))
    assert meta is not None
    assert (meta.rows, first.exists()) == (5, False)
    assert any("1 rows of the holdout" in warning for warning in report.warnings)


def test_without_a_holdout_there_is_no_key(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    assert holdout_key(Workspace(workspace), settings_of(workspace)) is None


# ---- the process ----


def test_what_an_interrupted_intake_left_is_made_anew(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    folder = make_job(workspace, jsonl(*good_rows(30)) + BAD)
    for name in (".stage-tokens", "tokens"):
        (folder / name).mkdir()
        (folder / name / "ids.bin").write_bytes(b"half")
    (folder / "rejected.jsonl").write_text('{"line": 99}\n{"li')
    report = run_intake(workspace, folder)
    assert tokens.check(folder / "tokens", report.cache_key or "", report.sha256, deep=True) is None
    assert [row["line"] for row in rejected_rows(folder)] == [31]
    assert not (folder / ".stage-tokens").exists()


def spoil_config(workspace: Path) -> None:
    (workspace / "config.json").write_text('{"model_name": "m", "base_model": "b", "max_lenght": 7}')


def spoil_model(workspace: Path) -> None:
    (workspace / "models/base/small/tokenizer.json").unlink()


def spoil_template(workspace: Path) -> None:
    (workspace / "models/base/small/chat_template.jinja").unlink()


def spoil_holdout(workspace: Path) -> None:
    (workspace / "data/validation/h.jsonl").write_bytes(BAD)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_config, "unknown key max_lenght"),
        (spoil_model, "has no tokenizer.json"),
        (spoil_template, "has no chat template"),
        (spoil_holdout, "No row of the holdout"),
    ],
)
def test_a_fault_of_the_workspace_is_not_blamed_on_the_file(tmp_path: Path, spoil: Any, said: str) -> None:
    workspace = make_workspace(tmp_path / "w")
    folder = make_job(workspace, jsonl(*good_rows(1)))
    spoil(workspace)
    done = start_intake(workspace, folder)
    answer = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (21, "")
    assert said in answer["message"]
    assert answer["remedy"]
    assert not (folder / "report.json").exists()


def test_intake_never_loads_torch_transformers_or_numpy(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    (workspace / "data/validation/h.jsonl").write_bytes(jsonl(*good_rows(4)))
    folder = make_job(workspace, jsonl(*good_rows(9), {"text": "t"}) + BAD)
    code = (
        "import sys; from daemon.data.intake import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'numpy', 'peft', 'accelerate'} & set(sys.modules);"
        "sys.exit(f'loaded: {heavy}' if heavy else code)"
    )
    command = [sys.executable, "-P", "-c", code, str(workspace), str(folder)]
    done = subprocess.run(command, env=intake_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    report = IntakeReport.load(folder / "report.json")
    assert report is not None
    assert report.rows + report.holdout_rows == 10


def peak_megabytes(workspace: Path, folder: Path) -> float:
    """Of the real process: VmHWM, because ru_maxrss would count this test's own memory before exec."""
    code = (
        "import sys; from daemon.data.intake import main; code = main(sys.argv[1:]);"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')));"
        "sys.exit(code)"
    )
    command = [sys.executable, "-P", "-c", code, str(workspace), str(folder)]
    done = subprocess.run(command, env=intake_environment(), capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def test_a_file_ten_times_as_long_needs_no_more_memory(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    rows = [chat(f"What is {i}? " * 4, f"It is {i}. " * 8) for i in range(20_000)]
    small = peak_megabytes(workspace, make_job(workspace, jsonl(*rows[:2_000])))
    large = peak_megabytes(workspace, make_job(workspace, jsonl(*rows)))
    assert large < small + 25  # batches of full size, and 16 bytes a row to find duplicates


def test_a_line_of_a_hundred_megabytes_is_a_bad_row_and_needs_no_memory(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", max_bad_row_percent=50, max_row_bytes=2**20)
    huge = b'{"text": "' + b"x" * 100 * 2**20 + b'"}\n'
    folder = make_job(workspace, jsonl(*good_rows(1)) + huge + jsonl(*good_rows(1)))
    assert peak_megabytes(workspace, folder) < 70
    assert [row["line"] for row in rejected_rows(folder)] == [2]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_intake_dies_with_its_parent(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    folder = make_job(workspace, b"")
    (folder / "x.jsonl").unlink()
    os.mkfifo(folder / "x.jsonl")
    code = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); p.wait()"
    command = [sys.executable, "-c", code, *intake_command(workspace, folder)]
    with subprocess.Popen(command, env=intake_environment(), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        with (folder / "x.jsonl").open("wb"):  # opens once intake reads
            assert is_running(pid)
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            deadline = time.monotonic() + 10
            while is_running(pid) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not is_running(pid)


def test_intake_whose_daemon_died_while_it_started_touches_nothing(tmp_path: Path) -> None:
    """Its successor examines the same job by then, and they would remove each other's files."""
    workspace = make_workspace(tmp_path)
    folder = make_job(workspace, jsonl(*good_rows(3)))
    gone = subprocess.Popen(["true"])
    gone.wait()
    before = sorted(path.name for path in folder.iterdir())
    program, *words = intake_command(workspace, folder)
    at = words.index(str(workspace))
    command = [program, *words[:at], "--parent", str(gone.pid), *words[at:]]
    ended = subprocess.run(command, env=intake_environment(), check=False)
    assert ended.returncode == Exit.PROBLEM
    assert sorted(path.name for path in folder.iterdir()) == before
