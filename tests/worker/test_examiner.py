"""How often and how large evaluations are, and when generation is given up."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.core import files
from daemon.core.errors import BadConfig
from daemon.models import checkpoints
from daemon.worker.costs import Cost, Costs
from daemon.worker.examiner import rows_to_watch
from daemon.worker.train import Training
from tests.helpers_training import At, Going, make_attempt, make_place, run


def log(root: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in files.read_lines(root / "runs/job/log.jsonl") if line["kind"] == kind]


def unanswered(training: Training, at: set[int]) -> None:
    """Let generation fail in these updates."""
    real: Callable[..., Any] = training._holdout._ask  # type: ignore[union-attr]

    def ask(*given: Any) -> Any:
        if training._trainer.state.global_step in at:
            raise ValueError("no")
        return real(*given)

    training._holdout._ask = ask  # type: ignore[union-attr, method-assign]


OFTEN = {"eval_steps": 1, "max_watching_percent": 100, "eval_examples": 2, "max_new_tokens": 4}


def test_three_in_a_row_turn_generation_off_aloud(tmp_path: Path) -> None:
    training = make_attempt(make_place(tmp_path), Going(holdout=True), **OFTEN)
    unanswered(training, {1, 3, 4, 5})
    run(training)
    outputs = {e["job_step"]: e["examples"][0]["model_output"] for e in log(tmp_path, "eval")}
    assert [step for step, output in outputs.items() if output is None] == [1, 3, 4, 5, 6]
    (off,) = [e for e in log(tmp_path, "event") if e["event"] == "generation_off"]
    assert off["job_step"] == 5 and "3 evaluations in a row" in off["reason"]
    assert [e["generation_timeouts"] for e in log(tmp_path, "eval")] == [0, 1, 0, 1, 1, 1, 0]


def test_who_goes_on_counts_those_before(tmp_path: Path) -> None:
    workspace = make_place(tmp_path)
    first = make_attempt(workspace, Going(holdout=True), **OFTEN)
    unanswered(first, {1, 2})
    first._trainer.add_callback(At(2, lambda: first._step.save(final=False, wait=True)))
    run(first)
    workspace.checkpoint(6).rename(tmp_path / "later")
    second = make_attempt(workspace, Going(resume="current_model/checkpoint-2", holdout=True), **OFTEN)
    unanswered(second, {3})
    run(second)
    assert [e["job_step"] for e in log(tmp_path, "event") if e["event"] == "generation_off"] == [3]


def test_a_job_in_which_it_hung_before_generates_nothing(tmp_path: Path) -> None:
    going = Going(holdout=True, assigned={"no_generation_because": "it hung"})
    run(make_attempt(make_place(tmp_path), going, **OFTEN))
    assert {e["examples"][0]["model_output"] for e in log(tmp_path, "eval")} == {None}
    assert all(e["validation_loss"] > 0 for e in log(tmp_path, "eval"))


def test_evaluations_that_would_take_too_much_of_the_time_are_left_out(tmp_path: Path) -> None:
    settings = {**OFTEN, "max_watching_percent": 30, "eval_examples": 0}
    training = make_attempt(make_place(tmp_path), Going(holdout=True), **settings)
    slow_loss(training, 1.0)
    for step in range(1, 7):
        training._trainer.add_callback(At(step, lambda: time.sleep(0.9)))
    run(training)
    steps = [e["job_step"] for e in log(tmp_path, "eval")]
    assert steps[0] == 0 and steps[-1] == 6 and 2 < len(steps) < 7
    costs = files.read_json(tmp_path / "status/monitoring_costs.json")
    assert costs and costs["costs"]["gate"]["times"] == 1  # the last one comes after the training


def slow_loss(training: Training, seconds: float) -> None:
    real: Callable[..., Any] = training._holdout.loss  # type: ignore[union-attr]

    def loss(*given: Any) -> Any:
        time.sleep(seconds)
        return real(*given)

    training._holdout.loss = loss  # type: ignore[union-attr, method-assign]


@pytest.mark.parametrize(
    ("between", "a_row", "rows"), [(100.0, 0.01, 200), (1.0, 0.01, 64), (100.0, 0.0, 64), (10_000.0, 0.01, 1000)]
)
def test_the_rows_measured_while_training_follow_from_their_speed(between: float, a_row: float, rows: int) -> None:
    assert rows_to_watch(between, a_row) == rows


def test_what_is_counted_inside_another_cost_is_counted_once(tmp_path: Path) -> None:
    costs = Costs(tmp_path / "costs.json", "job", 1)
    with costs.of(Cost.GATE), costs.of(Cost.VALIDATION):
        time.sleep(0.01)
    assert costs.seconds[Cost.GATE] >= 0.01 and costs.seconds[Cost.VALIDATION] == 0
    with costs.of(Cost.NUMBERS):
        time.sleep(0.01)
    costs.show()
    shown = files.read_json(tmp_path / "costs.json")
    assert shown and shown["watching_percent"] == shown["costs"]["numbers"]["percent"] > 0


def test_costs_that_cannot_be_written_end_no_training(tmp_path: Path) -> None:
    """The folder is gone, as the temporary is where a daemon that starts has cleared it."""
    training = make_attempt(make_place(tmp_path), Going(holdout=True), **OFTEN)
    (tmp_path / "status").rmdir()
    assert run(training).job_step == 6


PATIENT = {**OFTEN, "early_stopping_patience": 2, "eval_examples": 0, "max_watching_percent": 1}


def losses(training: Training, by_step: dict[int, float]) -> None:
    """What the holdout is made to say, by the update."""
    training._holdout.loss = lambda *_: by_step[training._trainer.state.global_step]  # type: ignore[union-attr, method-assign]


def stopped(root: Path) -> list[tuple[int, str]]:
    return [(e["job_step"], e["reason"]) for e in log(root, "event") if e["event"] == "stopped_early"]


def test_training_ends_early_where_the_holdout_got_no_better(tmp_path: Path) -> None:
    training = make_attempt(make_place(tmp_path), Going(holdout=True), **PATIENT)
    losses(training, {0: 9.0, 1: 3.0, 2: 3.5, 3: 2.5, 4: 2.5, 5: 2.6, 6: 1.0})
    ended = run(training)
    assert stopped(tmp_path) == [(5, "the loss on the holdout was not better than 2.5000 in 2 evaluations in a row")]
    assert "stopped early" in ended.message and ended.job_step == 5
    manifest = checkpoints.read(tmp_path / "current_model/checkpoint-5")
    assert manifest and manifest.final and manifest.rows_consumed == 20 and manifest.job_total_steps == 6


def test_who_goes_on_stops_where_it_would_have(tmp_path: Path) -> None:
    workspace = make_place(tmp_path)
    first = make_attempt(workspace, Going(holdout=True), **PATIENT)
    losses(first, {0: 9.0, 1: 2.0, 2: 3.0, 3: 1.0, 4: 1.0, 5: 1.0, 6: 1.0})
    first._trainer.add_callback(At(2, lambda: first._step.save(final=False, wait=True)))
    run(first)
    workspace.checkpoint(5).rename(tmp_path / "later")
    second = make_attempt(workspace, Going(resume="current_model/checkpoint-2", holdout=True), **PATIENT)
    losses(second, {3: 3.0})
    assert run(second).job_step == 3


def test_what_a_crash_left_of_a_training_that_stopped_early_is_only_evaluated(tmp_path: Path) -> None:
    workspace = make_place(tmp_path)
    first = make_attempt(workspace, Going(holdout=True), **PATIENT)
    losses(first, {0: 9.0, 1: 2.0, 2: 3.0, 3: 3.0})
    first.run()
    first.saver.close()
    second = make_attempt(workspace, Going(resume="current_model/checkpoint-3", holdout=True), **PATIENT)
    losses(second, {3: 3.0})
    assert run(second).job_step == 3
    assert [e["job_step"] for e in log(tmp_path, "log") if e["attempt"] == 2] == []


def test_without_a_holdout_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="early_stopping_patience looks at the loss on a holdout"):
        make_attempt(make_place(tmp_path), **PATIENT)
