"""The system calls of a real daemon and its workers: nothing gets its name unsynced, no step outruns the one before."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.bench import COMMANDS, Bench, rows
from tests.helpers_strace import STRACE, Lint

ROOT = "/w"
AT_REST_SECONDS = 3.0


def lint(*calls: str) -> list[str]:
    return Lint(ROOT).read(f"7 {call}" for call in calls).findings


OPEN = 'openat(AT_FDCWD</>, "/w/.x.tmp", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0644) = 3</w/.x.tmp>'
WRITE = 'write(3</w/.x.tmp>, ""..., 4) = 4'
SYNC = "fsync(3</w/.x.tmp>) = 0"
RENAME = 'rename("/w/.x.tmp", "/w/x") = 0'
FOLDER = "fsync(4</w>) = 0"


def test_a_file_written_synced_renamed_and_its_folder_synced_is_in_order() -> None:
    assert lint(OPEN, WRITE, SYNC, RENAME, FOLDER) == []


def test_each_step_left_out_is_found() -> None:
    assert lint(OPEN, WRITE, RENAME, FOLDER)[0] == "renamed unsynced: .x.tmp, to x"
    assert lint(OPEN, SYNC, WRITE, RENAME, FOLDER)[0] == "renamed unsynced: .x.tmp, to x"
    assert lint(OPEN, WRITE, SYNC, RENAME) == ["never synced: /w"]


def test_what_lies_below_a_renamed_folder_counts() -> None:
    made = 'mkdir("/w/.stage-t", 0777) = 0', 'openat(5</w/.stage-t>, "x", O_WRONLY|O_CREAT, 0644) = 3</w/.stage-t/x>'
    named = 'rename("/w/.stage-t", "/w/t") = 0', FOLDER
    synced = "fsync(3</w/.stage-t/x>) = 0", "fsync(5</w/.stage-t>) = 0"
    assert lint(*made, *synced, *named) == []
    for number in range(2):
        assert "renamed unsynced" in lint(*made, synced[number], *named)[0]


def test_a_step_that_outruns_the_one_before_is_found() -> None:
    line = (
        'openat(AT_FDCWD</>, "/w/ledger", O_RDWR|O_CREAT|O_APPEND, 0644) = 9</w/ledger>',
        'write(9</w/ledger>, "", 4) = 4',
    )
    assert lint(*line, 'rename("/w/a/x", "/w/b/x") = 0')[0] == "went on to b/x before a sync of ledger"


def test_calls_in_two_pieces_are_read_as_one() -> None:
    pieces = 'rename("/w/.x.tmp",  <unfinished ...>', '<... rename resumed>"/w/x") = 0'
    assert lint(OPEN, WRITE, *pieces, FOLDER) == lint(OPEN, WRITE, RENAME, FOLDER)


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed: apt-get install strace")
def test_a_whole_training_tells_the_disk_in_order(make_bench: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make_bench(
        save_steps=4, num_train_epochs=1, save_total_limit=1, gate={"mode": "off"}, max_bad_row_percent=5
    )
    bench.hold_out(rows(4, start=900))
    trace = tmp_path / "trace.txt"
    bench.daemon = subprocess.Popen(
        [*STRACE, "-o", str(trace), str(COMMANDS / "training_daemon"), "--base-dir", str(bench.root), "run"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=bench.environment,
        cwd="/",
    )
    bench.wait(lambda: bench.status().get("pid") == bench.daemon_pid, 60, "the daemon runs, watched")
    for name, start in (("first", 0), ("second", 100)):
        bench.drop(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows(60, start)) + '{"messages": []}\n')
    bench.wait_for("completed", 2, 120)
    assert bench.command("training_controller", "stop", "--now").returncode == 0
    assert bench.daemon.wait(60) == 0
    whole = bench.wait(lambda: _ended(trace), 60, "the fork server has ended, and the trace with it")
    found = Lint(str(bench.root)).read(whole)
    assert found.findings == []
    assert found.renames > 50 and found.syncs > 150


def _ended(trace: Path) -> list[str] | None:
    """The trace, once nothing more is added to it."""
    at_rest = time.time() - trace.stat().st_mtime > AT_REST_SECONDS
    return trace.read_text(errors="replace").splitlines() if at_rest else None
