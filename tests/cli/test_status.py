"""The status tells the truth, quickly, whoever runs."""

import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from daemon import views
from daemon.core import files, locks
from daemon.core.records import Desired, State

ROOT = Path(__file__).parent.parent.parent
JOB = {"id": "j", "file": "a.jsonl", "priority": "normal", "attempt": 1, "rows": 9, "label": None}


def write_status(workspace, age_seconds=0, **facts):
    written = (datetime.now(UTC) - timedelta(seconds=age_seconds)).isoformat(timespec="milliseconds")
    facts = {"status": "training", "job": JOB, "updated_at": written, "stale_after_seconds": 90, **facts}
    files.write_json(workspace.status, {"schema_version": 1, "tokens_per_second": 41000, **facts})


def test_without_a_daemon_the_status_says_so_and_how_to_start_one(call, workspace):
    said = call("training_controller")
    assert said.code == 0
    assert f"daemon not running; start the daemon with: training_daemon --base-dir {workspace.root}" in said.out


def test_a_dead_daemon_is_never_shown_as_training(call, workspace):
    write_status(workspace, age_seconds=180)
    shown = call("training_controller", "status", "--json").json
    assert (shown["status"], shown["reason"], shown["tokens_per_second"]) == ("stopped", "daemon not running", None)
    assert shown["stale"] and shown["last_seen"] == shown["updated_at"]
    assert "last seen 3 min ago" in call("training_controller", "status").out


def test_a_worker_that_goes_on_without_its_daemon_is_named(call, workspace):
    lock = locks.Lock(workspace.worker_lock)
    assert "a worker goes on by itself" in call("training_controller").out
    lock.release()


def test_with_a_daemon_the_status_is_what_it_wrote(workspace):
    lock = locks.Lock(workspace.daemon_lock)
    write_status(workspace, loss=0.5)
    shown = views.status(workspace)
    assert (shown["status"], shown["loss"], shown["stale"]) == ("training", 0.5, False)
    write_status(workspace, age_seconds=91)
    assert views.status(workspace)["stale"]
    lock.release()


def test_what_an_earlier_daemon_wrote_is_not_the_state_of_the_present_one(workspace):
    lock = locks.Lock(workspace.daemon_lock)
    lock.describe({"pid": os.getpid()})
    write_status(workspace, pid=os.getpid() + 1)
    assert views.status(workspace)["status"] == "starting"
    lock.release()


def test_every_key_of_the_status_is_there_and_documented(workspace):
    page = (ROOT / "docs/reference/status.md").read_text()
    assert set(views.STATUS_KEYS) <= set(views.status(workspace))
    assert [key for key in views.status(workspace) if f"`{key}`" not in page] == []


def test_a_status_for_people_shows_steps_figures_and_the_error_with_its_remedy(call, workspace, job_at):
    job_at("b.jsonl", State.NORMAL)
    lock = locks.Lock(workspace.daemon_lock)
    error = {"class": "disk", "message": "the disk is full", "remedy": "free 3 GB", "at": "", "job": None}
    write_status(workspace, job_step=5, job_total_steps=10, progress_percent=50.0, loss="NaN", error=error)
    said = call("training_controller").out
    assert "● training  a.jsonl (normal, attempt 1)" in said
    assert "5/10  ████████████░░░░░░░░░░░░  50 %" in said
    assert re.search(r"loss +NaN", said)
    assert all(text in said for text in ("normal 1", "the disk is full", "free 3 GB"))
    lock.release()


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_means_no_colour(call, environment, coloured):
    assert (
        "\x1b[" in call("training_controller", FORCE_COLOR="1", TERM="xterm-256color", **environment).out
    ) == coloured


def test_the_queue_says_why_a_file_waits(workspace, job_at):
    job_at("a.jsonl", State.NORMAL)
    assert [row["waits_for"] for row in views.queue(workspace)] == ["daemon not running"]
    lock = locks.Lock(workspace.daemon_lock)
    job_at("b.jsonl", State.HIGH)
    assert [(row["file"], row["waits_for"]) for row in views.queue(workspace)] == [
        ("b.jsonl", "next"),
        ("a.jsonl", "1 before it"),
    ]
    Desired(paused=True, reason="user").save(workspace.desired)
    assert {row["waits_for"] for row in views.queue(workspace)} == {"paused (user)"}
    lock.release()


@pytest.mark.parametrize("command", [("training_controller", "status"), ("training_queue", "list")])
def test_status_and_list_answer_within_half_a_second(call, job_at, command):
    for n in range(20):
        job_at(f"{n}.jsonl", State.NORMAL)
    best = min(_seconds(lambda: call(*command)) for _ in range(3))
    assert best < 0.5


def _seconds(deed):
    start = time.monotonic()
    deed()
    return time.monotonic() - start


@pytest.mark.parametrize("command", [("training_controller", "status"), ("training_queue", "list")])
def test_status_and_list_load_no_torch(workspace, command):
    code = (
        "import sys, atexit, importlib\n"
        "atexit.register(lambda: print({'torch', 'transformers', 'numpy', 'asyncio'} & set(sys.modules)))\n"
        f"sys.argv = ['x', {command[1]!r}, '--base-dir', {str(workspace.root)!r}]\n"
        f"importlib.import_module('daemon.cli.{command[0]}').main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_the_tool_prints_one_json_document(call):
    assert json.loads(call("training_queue", "list", "--json").out) == []
    assert not re.search(r"\x1b", call("training_queue", "status", "--json", FORCE_COLOR="1").out)
