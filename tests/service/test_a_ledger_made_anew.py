"""A ledger that is missing or damaged is made anew, with the same lines; duplicates and the way back are known."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from daemon.core import files
from daemon.core.records import LedgerLine, State
from daemon.jobs import ledger, store
from daemon.models import checkpoints
from daemon.service import going_back
from tests.helpers_control import Stage
from tests.helpers_disk import without_waiting


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with without_waiting():
        yield
    structlog.configure(**before)


def train(stage: Stage, job: str) -> None:
    for _ in range(40):
        stage.look()
        stage.advance()
        if stage.state(job) in (State.COMPLETED, State.REJECTED):
            return
    raise AssertionError(stage.state(job))


def run_to_the_third_update(stage: Stage) -> str:
    job = stage.drop()
    stage.until_it_trains()
    for _ in range(2):
        stage.advance()
    return job


def lived(root: Path) -> Stage:
    """A workspace in which a job has ended in each way; the last file of those is the newest part of the model."""
    stage = Stage(root)
    train(stage, stage.drop())
    for keep in (False, True):
        assert stage.settle(stage.wish("skip", run_to_the_third_update(stage), keep=keep)).done
    stage.runner.loss = 9.0
    train(stage, stage.drop())
    stage.runner.loss = 1.0
    spoiled = stage.drop()
    (stage.workspace.state(State.NORMAL) / spoiled / "x.jsonl").write_bytes(b"no row\n")
    stage.look()
    stage.look()
    train(stage, stage.drop())
    assert [found.state for found in store.jobs(stage.workspace)].count(State.COMPLETED) == 2
    return stage


def said(stage: Stage) -> dict[str, LedgerLine]:
    """The line of each job that counts, without its time."""
    return {line.job: line.model_copy(update={"at": ""}) for line in ledger.lines(stage.workspace)}


def damage_a_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], lines[1].replace(b'"job"', b'"jab"'), *lines[2:]]))


def cut_in_the_middle(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], lines[1][:40] + b"\n", *lines[2:]]))


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size) + b"\n")


@pytest.mark.parametrize("harm", [files.remove, damage_a_line, cut_in_the_middle, zero])
def test_the_same_lines_are_there_and_all_that_rests_on_them(harm: Callable[[Path], None], tmp_path: Path) -> None:
    stage = lived(tmp_path / "w")
    before, accepted = said(stage), ledger.accepted(stage.workspace)
    assert sorted(line.outcome for line in before.values()) == [
        *("completed", "completed", "failed", "rejected", "skipped", "skipped")
    ]
    damaged = stage.workspace.ledger.read_bytes()
    harm(stage.workspace.ledger)
    damaged = stage.workspace.ledger.read_bytes() if stage.workspace.ledger.exists() else b""
    stage.obey_once()
    assert said(stage) == before
    assert list(ledger.accepted(stage.workspace).items()) == list(accepted.items()), "also in their order"
    kept = [path.read_bytes() for path in stage.workspace.runs.glob("ledger.damaged-*.jsonl")]
    assert kept == ([damaged] if damaged else [])
    (event,) = [e for e in files.read_lines(stage.workspace.events) if e["event"] == "ledger_rebuilt"]
    assert "made anew" in event["message"]
    for line in before.values():
        known = ledger.trained_as(stage.workspace, line.sha256 or "")
        assert known == (line.job if line.checkpoint else None)


def test_a_kept_file_goes_on_and_a_damaged_model_is_left_behind_with_a_ledger_made_anew(tmp_path: Path) -> None:
    stage = lived(tmp_path / "w")
    (part,) = (job for job, line in said(stage).items() if line.outcome == "skipped" and line.checkpoint)
    files.remove(stage.workspace.ledger)
    stage.start()
    stage.obey_once()
    stage.start()
    assert stage.settle(stage.wish("retry", part)).done
    train(stage, part)
    assert len(stage.in_model(part)) == 4
    files.remove(stage.workspace.ledger)
    stage.obey_once()
    latest = checkpoints.latest(stage.workspace)
    assert latest
    os.truncate(latest / "model.safetensors", 3)
    stage.start()
    assert stage.daemon
    assert asyncio.run(going_back.look_after_model(stage.daemon._context, "another"))
    assert stage.state(part) in (State.NORMAL, State.HIGH, State.LOW)
    assert len(stage.in_model(part)) == 3, "the part that was kept is in the model before it"
    train(stage, part)
    assert len(stage.in_model(part)) == 4


@pytest.mark.parametrize("harm", ["torn end", "nothing there", "whole"])
def test_what_is_no_damage_is_left_alone(harm: str, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "w")
    if harm != "nothing there":
        train(stage, stage.drop())
    whole = stage.workspace.ledger.read_bytes() if stage.workspace.ledger.exists() else None
    if harm == "torn end":
        with stage.workspace.ledger.open("ab") as ending:
            ending.write(b'{"job": "2026')
    stage.obey_once()
    assert (stage.workspace.ledger.read_bytes() if stage.workspace.ledger.exists() else None) == whole
    assert not [e for e in files.read_lines(stage.workspace.events) if e["event"] == "ledger_rebuilt"]


def test_where_the_model_was_taken_away_to_begin_again_no_file_counts_as_trained(tmp_path: Path) -> None:
    stage = lived(tmp_path / "w")
    files.remove(stage.workspace.ledger)
    stage.workspace.current_model.rename(tmp_path / "away")
    stage.workspace.current_model.mkdir()
    stage.obey_once()
    assert ledger.accepted(stage.workspace) == {}
    assert "completed" not in {line.outcome for line in said(stage).values()}
