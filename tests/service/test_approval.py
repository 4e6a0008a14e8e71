"""Approve and reject hit only the question that waits; the model moves by an approval, and by nothing else."""

from pathlib import Path

import pytest

from daemon.core.records import Desired, State, Verdict
from daemon.models import checkpoints
from tests.helpers_control import Stage
from tests.helpers_control_table import waiting_for_approval
from tests.helpers_disk import without_waiting


def stage_at(root: Path) -> Stage:
    """One file is accepted."""
    stage = Stage(root)
    first = stage.drop()
    while stage.state(first) != State.COMPLETED:
        stage.look()
        stage.advance()
    return stage


def test_a_rejected_model_leaves_the_one_before_it_and_the_next_file_grows_from_that(tmp_path: Path) -> None:
    with without_waiting():
        stage = stage_at(tmp_path / "w")
        before = checkpoints.latest(stage.workspace)
        job = waiting_for_approval(stage)
        assert stage.settle(stage.wish("reject", job, reason="forgets names")).done
        assert checkpoints.latest(stage.workspace) == before
        assert (stage.state(job), stage.in_model(job)) == (State.REJECTED, [])
        following = waiting_for_approval(stage)
        assert stage.settle(stage.wish("approve", following)).done
        latest = checkpoints.latest(stage.workspace)
        manifest = checkpoints.read(latest) if latest else None
        assert before and manifest and manifest.parent == checkpoints.name_of(before)
        verdict = Verdict.load(stage.workspace.run(job).verdict)
        assert verdict and verdict.reason.startswith("rejected by hand: forgets names; ")


@pytest.mark.parametrize("verb", ["approve", "reject"])
def test_a_wish_for_another_file_or_an_earlier_question_decides_nothing(verb: str, tmp_path: Path) -> None:
    with without_waiting():
        stage = stage_at(tmp_path / "w")
        job, other = waiting_for_approval(stage), stage.drop()
        for wish in (stage.wish(verb, other), stage.wish(verb, job, attempt=7), stage.wish(verb, "nobody")):
            assert not stage.settle(wish).done
        assert stage.question(job)


def test_a_wish_that_was_noted_before_a_crash_is_carried_out_and_answered_after_it(tmp_path: Path) -> None:
    with without_waiting():
        stage = stage_at(tmp_path / "w")
        job = waiting_for_approval(stage)
        wish = stage.wish("approve", job, lives_seconds=0.5)
        stage.look("obey wishes")
        stage.start()  # another daemon, after the wish's own time
        assert stage.settle(wish).done
        assert stage.state(job) is State.COMPLETED


def test_of_approve_and_reject_that_wait_the_last_word_holds(tmp_path: Path) -> None:
    with without_waiting():
        stage = stage_at(tmp_path / "w")
        job = waiting_for_approval(stage)
        first, last = stage.wish("approve", job), stage.wish("reject", job)
        assert not stage.settle(first).done
        assert stage.settle(last).done
        assert stage.state(job) is State.REJECTED


def test_what_waits_for_approval_survives_a_restart_and_a_pause(tmp_path: Path) -> None:
    with without_waiting():
        stage = stage_at(tmp_path / "w")
        job = waiting_for_approval(stage)
        stage.start()
        stage.look()
        assert stage.question(job)
        assert stage.settle(stage.wish("pause")).done
        assert stage.settle(stage.wish("approve", job)).done
        assert stage.state(job) is State.COMPLETED
        desired = Desired.load(stage.workspace.desired)
        assert desired and desired.paused
