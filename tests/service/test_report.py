"""report.md tells a person what became of a file; what cannot be told keeps no job from its end."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.core import files
from daemon.core.attempts import ExitInfo, Measured, Outcome, SuiteFigures
from daemon.core.paths import Workspace
from daemon.core.records import IntakeReport, State, now
from daemon.jobs.store import Found
from daemon.service import report, results
from tests.helpers_jobs import make_workspace, put_checkpoint, put_job
from tests.jobs.test_history import KILLED, line

REPORT = json.loads((Path(__file__).parent.parent / "golden/IntakeReport.json").read_text())
FIGURES = SuiteFigures(key="k", rows=8, questions=8, loss=0.5, perplexity=1.6487, exact_match=0.75)


def examples(answer: str) -> list[dict[str, Any]]:
    match = answer == "Paris"
    return [{"prompt": "France?", "golden_answer": "Paris", "model_output": answer, "match": match}]


LOG = [
    line("eval", 0, validation_loss=3.0, accuracy_percent=0.0, examples=examples("<b>`|no|`")),
    *KILLED,
    line("event", 14, 2, second=15, event="update_skipped", lines=[3, 4], loss="NaN", grad_norm="Infinity"),
    line("eval", 14, 2, second=16, validation_loss=1.0, accuracy_percent=100.0, generation_timeouts=1)
    | {"examples": examples("Paris")},
]


def a_run(workspace: Workspace, log: list[dict[str, Any]] | None = None) -> Found:
    """A job in processing whose first attempt was killed and whose second has come to its end."""
    found = put_job(workspace, State.PROCESSING, "x<y>.jsonl")
    run = workspace.run(found.id)
    for number in (1, 2):
        run.attempt(number).root.mkdir(parents=True)
    ExitInfo(pid=1, code=None, signal=9, at=now()).save(run.attempt(1).exit)
    Outcome(kind="done", code=0, message="trained to the end", job_step=14, at=now()).save(run.attempt(2).outcome)
    for entry in LOG if log is None else log:
        files.append_json(run.log, entry)
    return found


def page(workspace: Workspace, found: Found, state: State, reason: str | None = None, **card: Any) -> str:
    given = IntakeReport.model_validate(REPORT | card)
    report.write_report(workspace, found, state, reason, "training_queue retry x", given)
    return workspace.run(found.id).report.read_text()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


def test_a_failed_job_says_why_what_to_do_and_what_had_happened(workspace: Workspace) -> None:
    found = a_run(workspace)
    damaged = {"time": now(), "event": "checkpoint_damaged", "message": "checkpoint-8 is damaged", "job": found.id}
    files.append_json(workspace.events, damaged)
    files.append_json(workspace.events, damaged | {"job": "another", "message": "of another job"})
    told = page(workspace, found, State.FAILED, "the GPU has failed", bad_rows=3, too_long_rows=2, holdout_rows=1)
    for said in (
        "# x&lt;y>.jsonl: failed",
        "The GPU has failed.",
        "What to do: `training_queue retry x`",
        "3 bad, see `rejected.jsonl`; 2 longer than `max_length`; 1 in the holdout",
        "| holdout loss | – | 3 | 1 |",
        "attempt 1: ended by signal 9",
        "attempt 2: done: trained to the end",
        "update 14 was kept out of the weights: loss NaN, gradient norm Infinity; its rows stand in lines 3, 4",
        "1 evaluations whose answers took too long or failed",
        "checkpoint-8 is damaged",
    ):
        assert said in told, told
    assert "of another job" not in told and "update 12" not in told, "what was made again is no incident"


def test_answers_before_and_after_stand_side_by_side_and_cannot_break_the_page(workspace: Workspace) -> None:
    told = page(workspace, a_run(workspace), State.FAILED)
    assert "| ✓ | France? | Paris | &lt;b>'\\|no\\|' | Paris |" in told
    assert "100 % of the examples are answered as expected, 0 % were before." in told


def test_figures_come_from_results_of_this_life_of_the_job_only(workspace: Workspace) -> None:
    found = a_run(workspace)
    run = workspace.run(found.id)
    run.results.write_text(yaml.safe_dump({"attempt": 1, "metrics": "of an earlier life"}))
    assert "holdout loss | – | 3 | 1 |" in page(workspace, found, State.FAILED)


def test_a_job_that_never_began_has_no_page(workspace: Workspace) -> None:
    found = put_job(workspace, State.NORMAL)
    report.write_report(workspace, found, State.FAILED, "not usable", None, None)
    assert not workspace.run(found.id).root.exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: run.log.write_text('{"kind": "log"}\n{}\n'),
        lambda run: run.log.write_text('{"kind": "log", "time": "", "attempt": 1, "step": "x", "job_step": []}\n'),
        lambda run: run.results.write_text("{attempt: 2, metrics: 7}"),
        lambda run: run.results.write_bytes(b"\xff\xfe: ["),
        lambda run: run.attempt(2).outcome.write_text("{"),
    ],
)
def test_what_is_damaged_never_keeps_a_job_from_its_end(workspace: Workspace, spoil: Any) -> None:
    found = a_run(workspace)
    spoil(workspace.run(found.id))
    report.write_report(workspace, found, State.FAILED, None, None, None)


def test_an_empty_log_makes_a_page_too(workspace: Workspace) -> None:
    assert "no updates of this file" in page(workspace, a_run(workspace, []), State.FAILED)


# ---- the figures of the suites ----


def measured(checkpoint: str, **suites: SuiteFigures) -> Measured:
    base = {name: FIGURES.model_copy(update={"exact_match": 0.0}) for name in suites}
    speeds: dict[str, Any] = {"tokens_per_second": {64: 1.0}, "generated_tokens_per_second": 2.0}
    return Measured(checkpoint=checkpoint, suites=suites, base=base, seconds=1, allowed_seconds=10, **speeds)


def test_the_accepted_model_before_is_what_its_own_attempts_have_measured(workspace: Workspace) -> None:
    old = workspace.run("old")
    for number in (1, 2):
        old.attempt(number).root.mkdir(parents=True)
    measured("checkpoint-7", s=FIGURES, t=FIGURES).save(old.attempt(1).measured)
    measured("checkpoint-6", s=FIGURES.model_copy(update={"exact_match": 0.1})).save(old.attempt(2).measured)
    entry = {"file": "x", "sha256": "e" * 64, "rows": 2, "epochs": 1, "steps": 5}
    lineage = [{"job": "old", **entry}, {"job": "new", **entry}]
    parent = {"checkpoint": "checkpoint-7", "manifest_sha256": "f" * 64}
    put_checkpoint(workspace, 12, "new", parent, lineage=lineage)  # type: ignore[arg-type]
    manifest = results.checkpoints.read(workspace.checkpoint(12))
    now_ = measured("checkpoint-12", s=FIGURES, t=FIGURES.model_copy(update={"key": "other"}))
    assert manifest
    found = results._baselines(workspace, manifest, None, now_)
    assert found["previous_version"]["s"]["exact_match"] == 0.75 and "reason" not in found["previous_version"]["s"]
    assert found["previous_version"]["t"]["exact_match"] is None
    assert found["previous_version"]["t"]["reason"] == results.NO_RESULTS_BEFORE
    assert found["base_model"]["s"]["exact_match"] == 0.0


def test_what_was_not_done_to_its_end_is_told(workspace: Workspace) -> None:
    early = line("event", 14, 2, second=15, event="stopped_early", reason="no better in 3 evaluations")
    silent = line("event", 14, 2, second=15, event="generation_off", reason="three in a row")
    started = line("event", 10, 2, second=14, event="started", left_out=[3, 4])
    told = page(workspace, a_run(workspace, [*LOG, started, early, silent]), State.COMPLETED)
    assert "training ended before the last row: no better in 3 evaluations" in told
    assert "nothing more was generated: three in a row" in told and "2 rows were left out" in told
