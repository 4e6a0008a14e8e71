"""Results -> verdict: every case, bounds included."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from daemon.core.attempts import Evaluation, Manifest
from daemon.core.records import Question, Verdict
from daemon.core.sections import Gate
from daemon.jobs import gate
from daemon.jobs.gate import Heard

MANIFEST = Manifest.model_validate(json.loads((Path(__file__).parent.parent / "golden" / "Manifest.json").read_text()))


def judge(
    after: float | None,
    before: float | None = 1.0,
    best: float | None = None,
    key: str | None = "holdout",
    final: bool = True,
    **settings: Any,
) -> Verdict:
    verdict = asked(after, before, best, key, final, **settings)
    assert isinstance(verdict, Verdict)
    return verdict


def asked(
    after: float | None,
    before: float | None = 1.0,
    best: float | None = None,
    key: str | None = "holdout",
    final: bool = True,
    **settings: Any,
) -> Verdict | Question:
    evaluation = Evaluation(holdout_key=key, rows=10, before=before, after=after)
    manifest = MANIFEST.model_copy(update={"final": final})
    return gate.judge(Gate(**settings), manifest, "checkpoint-3750", evaluation, best)


@pytest.mark.parametrize(
    ("after", "before", "best", "passed", "words"),
    [
        (0.5, 1.0, None, True, "holdout loss 0.5000; the accepted model's was 1.0000"),
        (1.0, 1.0, 1.0, True, "holdout loss 1.0000"),
        (1.05, 1.0, None, True, "holdout loss 1.0500"),
        (1.0501, 1.0, None, False, "5.0% above the accepted model's 1.0000 (5% more is allowed)"),
        (1.04, 1.0, 0.95, True, "holdout loss 1.0400"),
        (1.04, 1.0, 0.9, False, "above the best accepted model's 0.9000 (10% more is allowed)"),
        (1.5, None, None, True, "holdout loss 1.5000"),
        (1.5, None, 1.0, False, "the best accepted model's"),
        (3.0, 1.0, None, False, "3.0 times the accepted model's"),
        (math.nan, 1.0, None, False, "the holdout loss is not a finite number"),
        (math.inf, None, None, False, "the holdout loss is not a finite number"),
        (None, 1.0, None, False, "the holdout loss is not a finite number"),
    ],
)
def test_the_gate_compares_the_holdout_loss_with_both_bounds(
    after: float | None, before: float | None, best: float | None, passed: bool, words: str
) -> None:
    verdict = judge(after, before, best)
    assert verdict.passed is passed
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("facts", "passed", "words"),
    [
        ({"after": None, "key": None}, True, "there is no holdout"),
        ({"after": 9.0, "mode": "off"}, True, "the gate is off; holdout loss 9.0000"),
        ({"after": None, "mode": "off", "before": None}, True, "the gate is off; no holdout loss"),
        ({"after": 0.1, "final": False}, False, "did not reach its end"),
        ({"after": 0.1, "final": False, "mode": "off"}, False, "did not reach its end"),
        ({"after": None, "key": None, "final": False}, False, "did not reach its end"),
        ({"after": 1.4, "max_regression": 0.5}, True, "holdout loss 1.4000"),
        ({"after": 1.4, "max_regression": 0.3}, False, "(30% more is allowed)"),
        ({"after": 1.0, "best": 0.9, "max_regression_over_best": 0.2}, True, "holdout loss 1.0000"),
        ({"after": 1.0, "best": 0.9, "max_regression_over_best": 0.0}, False, "(0% more is allowed)"),
    ],
)
def test_mode_bounds_and_completeness_decide(facts: dict[str, Any], passed: bool, words: str) -> None:
    verdict = judge(**facts)
    assert verdict.passed is passed
    assert words in verdict.reason


def test_a_verdict_carries_what_it_was_made_from() -> None:
    verdict = judge(0.9, 1.0, 0.95)
    assert (verdict.validation_loss, verdict.accepted_loss, verdict.best_loss) == (0.9, 1.0, 0.95)
    assert (verdict.checkpoint, verdict.holdout_key) == ("checkpoint-3750", "holdout")
    assert (verdict.mode, verdict.attempt) == ("auto", MANIFEST.attempt)


def test_a_verdict_on_a_loss_that_is_no_number_can_be_written_down(tmp_path: Path) -> None:
    """Files are strict JSON, which has no word for it."""
    judge(math.nan).save(tmp_path / "verdict.json")
    saved = Verdict.load(tmp_path / "verdict.json")
    assert saved and saved.validation_loss is None and not saved.passed


OTHERS: list[dict[str, Any]] = [{"mode": "human"}, {"mode": "judge", "judge_command": ["judge"]}]


@pytest.mark.parametrize("settings", OTHERS)
@pytest.mark.parametrize(
    ("facts", "would_pass", "words"),
    [
        ({"after": 0.9}, True, "holdout loss 0.9000"),
        ({"after": 3.0}, False, "3.0 times the accepted model's 1.0000"),
        ({"after": 1.04, "best": 0.9}, False, "above the best accepted model's"),
        ({"after": None, "key": None}, True, "there is no holdout"),
    ],
)
def test_a_worse_loss_is_for_the_judge_or_person_to_weigh(
    facts: dict[str, Any], would_pass: bool, words: str, settings: dict[str, Any]
) -> None:
    question = asked(**facts, **settings)
    assert isinstance(question, Question)
    assert (question.automatic.passed, question.automatic.mode) == (would_pass, settings["mode"])
    assert words in question.automatic.reason
    assert question.answer is None


@pytest.mark.parametrize("settings", OTHERS)
@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"after": math.nan}, "not a finite number"),
        ({"after": None}, "not a finite number"),
        ({"after": 0.9, "final": False}, "did not reach its end"),
    ],
)
def test_nobody_is_asked_about_a_broken_training(facts: dict[str, Any], words: str, settings: dict[str, Any]) -> None:
    verdict = judge(**facts, **settings)
    assert not verdict.passed
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("heard", "passed", "words"),
    [
        (Heard(code=0), True, "passed by the judge"),
        (Heard(code=0, last_words="fine"), True, "passed by the judge: fine"),
        (Heard(code=1, last_words="forgets names"), False, "rejected by the judge: forgets names"),
        (Heard(code=2), None, "the judge ended with exit code 2, which is no answer"),
        (Heard(code=127), None, "exit code 127"),
        (Heard(code=-9), None, "the judge was ended by signal 9"),
        (Heard(code=-15, timed_out=True), None, "the judge gave no answer within 600 s"),
        (Heard(code=0, timed_out=True), None, "the judge gave no answer within 600 s"),
        (Heard(code=1, timed_out=True, last_words="loading"), None, "within 600 s: loading"),
        (Heard(error="judge.sh: No such file or directory"), None, "could not be asked: judge.sh: No such"),
        (Heard(), None, "exit code None"),
    ],
)
def test_only_0_and_1_in_time_are_the_answer_of_a_judge(heard: Heard, passed: bool | None, words: str) -> None:
    decided, said = gate.decided(heard, 600)
    assert decided is passed
    assert words in said


@pytest.mark.parametrize(
    ("answer", "words", "reason"),
    [
        (True, None, "approved by hand; holdout loss 3.0000 is 3.0 times"),
        (True, "reads well", "approved by hand: reads well; holdout loss 3.0000"),
        (False, "forgets names", "rejected by hand: forgets names; holdout loss 3.0000"),
    ],
)
def test_a_person_decides_against_the_figures_and_they_stay_in_the_verdict(
    answer: bool, words: str | None, reason: str
) -> None:
    question = asked(3.0, mode="judge", judge_command=["judge"])
    assert isinstance(question, Question)
    verdict = gate.by_hand(question.model_copy(update={"answer": answer, "words": words}))
    assert (verdict.passed, verdict.mode, verdict.validation_loss) == (answer, "human", 3.0)
    assert verdict.reason.startswith(reason)
