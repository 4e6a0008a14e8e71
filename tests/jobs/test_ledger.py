"""What was trained and how it ended: one line a job that ended, however often settling is repeated."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.core import files
from daemon.core.paths import Workspace
from daemon.jobs import ledger
from tests.helpers_disk import disk_with, recorded
from tests.helpers_jobs import ledger_line, make_workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


def test_without_a_file_nothing_was_trained(workspace: Workspace) -> None:
    assert ledger.lines(workspace) == []
    assert ledger.trained_as(workspace, "b" * 64) is None
    assert ledger.best_loss(workspace, "9" * 64) is None


def test_a_line_that_says_the_same_is_not_written_twice(workspace: Workspace) -> None:
    for at in ("2026-01-31T12:00:00.000Z", "2026-01-31T12:00:01.000Z"):
        ledger.record(workspace, ledger_line(at=at))
    assert len(ledger.lines(workspace)) == 1


def test_a_job_that_ended_again_otherwise_gets_another_line_and_the_last_counts(workspace: Workspace) -> None:
    for outcome in ("failed", "completed", "failed"):
        ledger.record(workspace, ledger_line(outcome=outcome))
    assert [line.outcome for line in ledger.lines(workspace)] == ["failed", "completed", "failed"]


def test_lines_of_other_jobs_in_between_do_not_matter(workspace: Workspace) -> None:
    for job in ("a", "b", "a", "b"):
        ledger.record(workspace, ledger_line(job=job))
    assert [line.job for line in ledger.lines(workspace)] == ["a", "b"]


def test_a_line_that_a_crash_cut_off_is_written_again(workspace: Workspace) -> None:
    files.append_json(workspace.ledger, ledger_line())
    workspace.ledger.write_bytes(workspace.ledger.read_bytes()[:-20])
    ledger.record(workspace, ledger_line())
    assert len(ledger.lines(workspace)) == 1


@pytest.mark.parametrize("outcome", ["completed", "failed", "rejected", "skipped"])
def test_content_counts_as_trained_only_where_it_was_completed(workspace: Workspace, outcome: str) -> None:
    checkpoint = "checkpoint-3750" if outcome == "completed" else None
    ledger.record(workspace, ledger_line(job="first", outcome=outcome, checkpoint=checkpoint))
    assert ledger.trained_as(workspace, "b" * 64) == ("first" if outcome == "completed" else None)
    assert ledger.trained_as(workspace, "c" * 64) is None


@pytest.mark.parametrize("later", [None, "failed", "rejected", "skipped"])
def test_a_part_that_was_kept_counts_as_trained_and_accepted_however_a_retry_ends(
    workspace: Workspace, later: str | None
) -> None:
    ledger.record(workspace, ledger_line(job="part", outcome="skipped", checkpoint="checkpoint-9", validation_loss=1.0))
    if later:
        loss = {"validation_loss": 0.5} if later == "rejected" else {"validation_loss": None, "holdout_key": None}
        ledger.record(workspace, ledger_line(job="part", outcome=later, checkpoint="checkpoint-9", **loss))
    assert ledger.accepted(workspace) == {"part": "checkpoint-9"}
    assert ledger.trained_as(workspace, "b" * 64) == "part"
    assert ledger.accepted_loss(workspace, "part", "9" * 64) == ledger.best_loss(workspace, "9" * 64) == 1.0
    ledger.undo(workspace, ["part"], "lost")
    assert ledger.accepted(workspace) == {} and ledger.trained_as(workspace, "b" * 64) is None


@pytest.mark.parametrize(
    ("lines", "best"),
    [
        ([], None),
        ([{"validation_loss": 1.5}], 1.5),
        ([{"validation_loss": 1.5}, {"validation_loss": 1.2}, {"validation_loss": 1.4}], 1.2),
        ([{"validation_loss": 1.5}, {"validation_loss": 1.0, "outcome": "rejected"}], 1.5),
        ([{"validation_loss": 1.5}, {"validation_loss": 1.0, "holdout_key": "another"}], 1.5),
        ([{"validation_loss": None}], None),
        ([{"validation_loss": None}, {"validation_loss": 1.5}], 1.5),
        ([{"validation_loss": 1.5, "holdout_key": None}], None),
    ],
)
def test_the_best_loss_is_that_of_accepted_models_on_the_same_holdout(
    workspace: Workspace, lines: list[dict[str, Any]], best: float | None
) -> None:
    for number, facts in enumerate(lines):
        ledger.record(workspace, ledger_line(job=str(number), **facts))
    assert ledger.best_loss(workspace, "9" * 64) == best
    assert ledger.best_loss(workspace, None) is None


def test_the_accepted_loss_is_that_of_the_job_s_last_line_on_the_same_holdout(workspace: Workspace) -> None:
    for facts in ({"validation_loss": 1.5}, {"validation_loss": 1.2}, {"job": "another", "validation_loss": 1.0}):
        ledger.record(workspace, ledger_line(**{"job": "mine", **facts}))
    assert ledger.accepted_loss(workspace, "mine", "9" * 64) == 1.2
    assert ledger.accepted_loss(workspace, "mine", "another") is None
    assert ledger.accepted_loss(workspace, "mine", None) is None


def test_a_line_whose_fsync_has_failed_is_not_taken_for_written(workspace: Workspace) -> None:
    """After a failed fsync the line can be read, and the next fsync of that file says nothing: only a new file does."""

    def failing(name: str, call: Callable[[], object], _: tuple[Any, ...]) -> object:
        if name == "fsync":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call()

    with pytest.raises(OSError), disk_with(failing):
        ledger.record(workspace, ledger_line())
    doubtful = workspace.ledger.stat().st_ino
    recorder = recorded(workspace.root, lambda: ledger.record(workspace, ledger_line()))
    assert len(ledger.lines(workspace)) == 1
    assert workspace.ledger.stat().st_ino != doubtful
    assert (recorder.faults, recorder.unsynced) == ([], [])
