"""Commands that change something return when it is true, or say what is wrong and what to do."""

from datetime import datetime
from pathlib import Path

import pytest

from daemon.core import files, locks
from daemon.core.errors import Exit
from daemon.core.records import State

GOLDEN = Path(__file__).parent.parent / "golden"


def test_a_command_prints_what_the_daemon_says(call, answering):
    with answering(message="paused at step 340; checkpoint current_model/checkpoint-340") as heard:
        said = call("training_controller", "pause")
    assert (said.code, said.out) == (0, "paused at step 340; checkpoint current_model/checkpoint-340\n")
    assert [(wish.verb, wish.job) for wish in heard] == [("pause", None)]


def test_a_refusal_keeps_its_exit_code_and_remedy(call, answering):
    with answering(done=False, message="It is running.", remedy="pause first", exit=int(Exit.REFUSED)):
        said = call("training_controller", "resume")
    assert said.code == Exit.REFUSED
    assert said.err == "error: It is running.\n  remedy: pause first\n"


def test_with_json_an_error_is_json_too(call):
    said = call("training_controller", "skip", "--json")
    assert said.code == Exit.REFUSED
    assert said.json["error"]["exit"] == Exit.REFUSED and said.json["error"]["remedy"]


def test_stop_says_whether_now_is_meant(call, answering):
    with answering() as heard:
        call("training_controller", "stop", "--now")
        call("training_controller", "stop")
    assert [wish.options for wish in heard] == [{"now": True}, {"now": False}]


def test_skip_names_the_job_that_runs_now(call, answering, job_at):
    job = job_at("a.jsonl", State.PROCESSING)
    with answering() as heard:
        call("training_controller", "skip")
    assert [wish.job for wish in heard] == [job.id]


@pytest.mark.parametrize("verb", ["approve", "reject"])
def test_approve_and_reject_name_the_very_question_that_is_asked_now(call, answering, job_at, workspace, verb):
    job = job_at("a.jsonl", State.PROCESSING)
    run = workspace.run(job.id)
    files.make_folder(run.attempt(2).root)
    question = files.read_json(GOLDEN / "Question.json")
    question |= {"answer": None, "automatic": question["automatic"] | {"attempt": 2}}
    files.write_json(run.question, question)
    with answering() as heard:
        call("training_controller", verb, "--reason", "reads well")
    assert [(wish.verb, wish.job) for wish in heard] == [(verb, job.id)]
    assert heard[0].options == {"reason": "reads well", "attempt": 2}


@pytest.mark.parametrize("verb", ["approve", "reject"])
def test_where_nothing_is_trained_nothing_waits_for_approval(call, verb):
    said = call("training_controller", verb)
    assert said.code == Exit.REFUSED and "Nothing waits for approval" in said.err


def test_a_wish_that_is_not_true_in_time_ends_with_timed_out_and_expires(call, workspace):
    lock = locks.Lock(workspace.daemon_lock)
    said = call("training_controller", "pause", "--timeout", "0.2")
    assert said.code == Exit.TIMED_OUT and "pause was asked for" in said.err
    (wish,) = (files.read_json(path) for path in workspace.wishes.iterdir())
    life = datetime.fromisoformat(wish["expires_at"]) - datetime.fromisoformat(wish["made_at"])
    assert 0.1 < life.total_seconds() < 0.3
    lock.release()


def test_no_wait_returns_at_once(call, workspace):
    lock = locks.Lock(workspace.daemon_lock)
    said = call("training_controller", "pause", "--no-wait")
    assert (said.code, said.out) == (0, "asked for: pause\n")
    lock.release()


def test_wishes_lie_in_the_order_in_which_they_were_made(call, answering):
    with answering() as heard:
        for verb in ("pause", "resume", "stop"):
            call("training_controller", verb)
    assert [wish.verb for wish in sorted(heard, key=lambda wish: wish.id)] == ["pause", "resume", "stop"]


def test_where_nobody_can_obey_the_wish_is_withdrawn(call, workspace):
    files.write(workspace.config, "{")  # no daemon starts on this
    said = call("training_controller", "pause")
    assert said.code == Exit.NOT_RUNNING
    assert f"training_daemon --base-dir {workspace.root}" in said.err
    assert list(workspace.wishes.iterdir()) == []


@pytest.mark.parametrize("command", ["training_controller", "training_queue"])
def test_what_is_not_understood_is_a_usage_error_with_a_remedy(call, command):
    said = call(command, "--colour")
    assert said.code == Exit.USAGE and said.err.startswith("error: ") and "remedy: " in said.err


def test_a_folder_that_is_no_workspace_is_not_found(call, tmp_path):
    said = call("training_controller", "status", "--base-dir", tmp_path)
    assert said.code == Exit.NOT_FOUND and "training_daemon init" in said.err


def test_base_dir_and_json_may_stand_before_the_verb(call, workspace):
    said = call("training_controller", "--base-dir", workspace.root, "--json", "status", TRAINING_BASE_DIR="/nowhere")
    assert said.json["status"] == "stopped"


@pytest.mark.parametrize(
    "words",
    [
        *(("training_controller", verb) for verb in ("status", "pause", "resume", "stop", "skip")),
        *(("training_queue", verb) for verb in ("add", "list", "status", "show", "set-priority", "remove", "retry")),
        *(("training_queue", verb) for verb in ("wait", "log")),
    ],
)
def test_every_command_has_help_with_two_examples(call, words):
    said = call(*words, "-h")
    assert said.code == 0
    assert len([line for line in said.out.splitlines() if line.strip().startswith(" ".join(words))]) == 2
