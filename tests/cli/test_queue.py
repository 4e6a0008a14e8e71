"""Files get into the inbox whole and never over another; what becomes of them is shown, waited for and changed."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from daemon import views, wishes
from daemon.core import files, locks
from daemon.core.errors import Exit
from daemon.core.records import ENDED_STATES, State
from daemon.jobs import store

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n')
    return path


def names(workspace):
    return sorted(path.name for path in workspace.inbox.iterdir())


def test_without_a_daemon_an_added_file_lies_in_the_inbox_and_the_start_is_named(call, workspace, source):
    said = call("training_queue", "add", source)
    assert said.code == 0 and "training_daemon --base-dir" in said.out
    assert names(workspace) == ["a.jsonl"] and source.read_text() == (workspace.inbox / "a.jsonl").read_text()


def test_an_added_file_never_replaces_another(call, workspace, source):
    for _ in range(3):
        call("training_queue", "add", source)
    assert names(workspace) == ["a-2.jsonl", "a-3.jsonl", "a.jsonl"]


def test_many_adding_the_same_name_at_once_lose_nothing(workspace, source):
    adders = [threading.Thread(target=wishes.drop, args=(workspace, source, {"label": str(n)})) for n in range(8)]
    for adder in adders:
        adder.start()
    for adder in adders:
        adder.join()
    assert len(list(workspace.inbox.glob("a*.jsonl"))) == len(list(workspace.inbox.glob("a*.yaml"))) == 8
    assert len(names(workspace)) == 16


def test_options_become_a_sidecar_that_is_there_before_its_file(call, workspace, source):
    call("training_queue", "add", source, "--priority", "high", "--epochs", 3, "--learning-rate", 1e-5, "--again")
    sidecar = workspace.inbox / "a.yaml"
    assert yaml.safe_load(sidecar.read_text()) == {
        "priority": "high",
        "epochs": 3,
        "learning_rate": 1e-5,
        "again": True,
    }
    assert sidecar.stat().st_ctime_ns <= (workspace.inbox / "a.jsonl").stat().st_ctime_ns


def test_another_files_sidecar_is_never_taken_for_ones_own(call, workspace, source):
    (workspace.inbox / "a.yaml").write_text("label: another\n")
    call("training_queue", "add", source, "--label", "mine")
    assert names(workspace) == ["a-2.jsonl", "a-2.yaml", "a.yaml"]


@pytest.mark.parametrize(
    ("name", "code"), [("missing.jsonl", Exit.NOT_FOUND), ("half.part", Exit.USAGE), ("folder", Exit.USAGE)]
)
def test_where_one_file_cannot_be_added_none_is(call, workspace, source, tmp_path, name, code):
    (tmp_path / "folder").mkdir()
    (tmp_path / "half.part").write_text("{}")
    said = call("training_queue", "add", source, tmp_path / name)
    assert said.code == code and "remedy: " in said.err
    assert names(workspace) == []


@pytest.mark.parametrize(
    ("state", "code", "text"),
    [(State.NORMAL, Exit.GOOD, "queued as #1: {} (98 rows, 2 refused)"), (State.FAILED, Exit.BAD_DATA, "refused: bad")],
)
def test_add_says_what_the_daemon_made_of_the_file(call, workspace, source, job_at, until, state, code, text):
    lock, said = locks.Lock(workspace.daemon_lock), []
    adding = threading.Thread(target=lambda: said.append(call("training_queue", "add", source)))
    adding.start()
    until(lambda: (workspace.inbox / "a.jsonl").exists())
    (workspace.inbox / "a.jsonl").unlink()
    job = job_at("a.jsonl", state, "bad rows" if state == State.FAILED else None)
    adding.join()
    assert said[0].code == code and text.format(job.id) in said[0].out
    lock.release()


def test_the_list_shows_what_trains_and_waits_in_order_and_all_on_request(call, job_at):
    states = [State.LOW, State.COMPLETED, State.NORMAL, State.HIGH, State.PROCESSING]
    for state in states:
        job_at(f"{state}.jsonl", state)
    active = [row["file"] for row in call("training_queue", "list", "--json").json]
    assert active == ["processing.jsonl", "high.jsonl", "normal.jsonl", "low.jsonl"]
    assert "completed.jsonl" in call("training_queue", "list", "--all").out
    assert "completed.jsonl" not in call("training_queue").out


def test_status_counts_the_files_in_each_place(call, workspace, job_at):
    job_at("a.jsonl", State.FAILED)
    (workspace.inbox / "b.jsonl").write_text("{}")
    counts = call("training_queue", "status", "--json").json
    assert (counts["inbox"], counts["failed"], counts["normal"]) == (1, 1, 0)


def test_show_names_the_refused_rows_with_line_and_reason(call, job_at):
    job = job_at("a.jsonl", State.NORMAL)
    files.append_json(job.folder / store.REJECTED_ROWS, {"line": 17, "reason": "no messages", "fix": "add", "row": "{"})
    assert "line 17: no messages (add)" in call("training_queue", "show", "a.jsonl").out
    assert call("training_queue", "show", job.id, "--json").json["rejected_rows"][0]["line"] == 17


def test_a_job_that_is_not_there_is_not_found(call):
    said = call("training_queue", "show", "nobody.jsonl")
    assert said.code == Exit.NOT_FOUND and "training_queue list --all" in said.err


@pytest.mark.parametrize("state", ENDED_STATES)
def test_wait_is_good_for_completed_jobs_only(call, job_at, state):
    job_at("a.jsonl", state, None if state == State.COMPLETED else "it was bad")
    said = call("training_queue", "wait", "a.jsonl")
    assert said.code == (0 if state == State.COMPLETED else 1)
    assert ("it was bad\n  remedy: read it" in said.out) == (state != State.COMPLETED)


def test_wait_returns_when_the_job_ends_and_gives_up_in_time(call, workspace, job_at):
    lock = locks.Lock(workspace.daemon_lock)
    job = job_at("a.jsonl", State.PROCESSING)
    assert call("training_queue", "wait", "a.jsonl", "--timeout", "0.2").code == Exit.TIMED_OUT
    said = []
    waiting = threading.Thread(target=lambda: said.append(call("training_queue", "wait", job.id, "--timeout", "30")))
    waiting.start()
    store.move(workspace, job, State.COMPLETED)
    waiting.join()
    assert said[0].code == 0
    lock.release()


def test_changes_name_the_job_by_its_id(call, answering, job_at):
    job = job_at("a.jsonl", State.NORMAL)
    with answering() as heard:
        call("training_queue", "set-priority", "a.jsonl", "high")
        call("training_queue", "remove", job.id[:15])
        call("training_queue", "retry", "a.jsonl", "--again")
        call("training_queue", "retry", "--all-failed")
    assert [(wish.verb, wish.job, wish.options) for wish in heard] == [
        ("set_priority", job.id, {"priority": "high"}),
        ("remove", job.id, {}),
        ("retry", job.id, {"again": True}),
        ("retry", None, {"again": False, "all_failed": True}),
    ]


@pytest.mark.parametrize("arguments", [[], ["a.jsonl", "--all-failed"]])
def test_retry_wants_one_job_or_all_failed_ones(call, arguments):
    assert call("training_queue", "retry", *arguments).code == Exit.USAGE


def write_log(workspace, job):
    files.make_folder(workspace.run(job.id).root)
    line = {"kind": "log", "time": "2026-01-31T12:00:00.000Z", "step": 10, "loss": 0.5, "learning_rate": 1e-4}
    files.append_json(workspace.run(job.id).log, line)
    files.append_json(workspace.run(job.id).log, {**line, "kind": "eval", "step": 20, "validation_loss": "NaN"})
    return line


def test_the_log_is_readable_and_raw_with_json(call, workspace, job_at):
    line = write_log(workspace, job_at("a.jsonl", State.COMPLETED))
    text, raw = call("training_queue", "log", "a.jsonl").out, call("training_queue", "log", "a.jsonl", "--json").out
    assert "step 10  loss 0.5" in text and "step 20  validation NaN" in text
    assert json.loads(raw.splitlines()[0]) == line


def test_following_a_log_ends_with_its_job_and_misses_no_line(workspace, job_at):
    job, seen = job_at("a.jsonl", State.PROCESSING), []
    following = threading.Thread(target=lambda: seen.extend(views.follow_log(workspace, job.id)))
    following.start()
    write_log(workspace, job)
    with workspace.run(job.id).log.open("a") as log:
        log.write('{"kind": "event", ')
        log.flush()
        log.write('"event": "saved"}\n')
    store.move(workspace, job, State.COMPLETED)
    following.join()
    assert [line["kind"] for line in seen] == ["log", "eval", "event"]


def test_a_reader_that_closes_early_gets_no_traceback(workspace, job_at):
    for n in range(50):
        job_at(f"{n}.jsonl", State.NORMAL)
    command = [sys.executable, "-P", "-m", "daemon.cli.training_queue", "list", "--base-dir", workspace.root]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
