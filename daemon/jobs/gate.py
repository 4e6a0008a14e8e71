"""Results -> verdict: whether a trained model may become the accepted one; or a question, where others decide that."""

import math
from dataclasses import dataclass

from daemon.core.attempts import Evaluation, Manifest
from daemon.core.records import Question, Verdict, now
from daemon.core.sections import Gate

PASSED, FAILED = 0, 1  # exit codes of a judge; any other is no answer


def judge(
    gate: Gate,
    manifest: Manifest,
    checkpoint: str,
    evaluation: Evaluation,
    best: float | None,
    *,
    kept: bool = False,
) -> Verdict | Question:
    """The verdict on a verified checkpoint: a final one, or one that is `kept`. Pure but for the time of day.

    `evaluation.before` is the accepted model's loss, `best` the lowest accepted so far, both on the same holdout.
    A question where a judge or a person decides: a worse loss is theirs to weigh, a broken training is nobody's.
    """
    broken = _broken(gate, manifest, evaluation, kept)
    passed, reason = (False, broken) if broken else _compared(gate, evaluation, best, kept)
    verdict = Verdict(
        passed=passed,
        attempt=manifest.attempt,
        mode=gate.mode,
        reason=reason,
        checkpoint=checkpoint,
        holdout_key=evaluation.holdout_key,
        validation_loss=evaluation.after,
        accepted_loss=evaluation.before,
        best_loss=best,
        kept=kept,
        at=now(),
    )
    asks = gate.mode in ("judge", "human") and not broken
    return Question(automatic=verdict, at=verdict.at) if asks else verdict


def _broken(gate: Gate, manifest: Manifest, evaluation: Evaluation, kept: bool) -> str | None:
    """What speaks against a model, whoever is asked."""
    if not (manifest.final or kept):
        return "the training did not reach its end"
    measured = gate.mode != "off" and evaluation.holdout_key is not None
    if measured and (evaluation.after is None or not math.isfinite(evaluation.after)):
        return "the holdout loss is not a finite number"
    return None


def _compared(gate: Gate, evaluation: Evaluation, best: float | None, kept: bool) -> tuple[bool, str]:
    after = evaluation.after
    figures = f"holdout loss {after:.4f}" if after is not None else "no holdout loss"
    if evaluation.before is not None:
        figures += f"; the accepted model's was {evaluation.before:.4f}"
    if gate.mode == "off":
        return True, f"the gate is off; {figures}"
    if evaluation.holdout_key is None:
        how = "kept as asked" if kept else "ended well"
        return True, f"{how}; there is no holdout, so nothing else was checked"
    assert after is not None, "else it is broken"
    bounds = [
        ("the accepted model's", evaluation.before, gate.max_regression),
        ("the best accepted model's", best, gate.max_regression_over_best),
    ]
    for whose, loss, allowed in bounds:
        if loss is not None and after > loss * (1 + allowed):
            return (
                False,
                f"holdout loss {after:.4f} is {_times(after, loss)} {whose} {loss:.4f} ({allowed:.0%} more is allowed)",
            )
    return True, figures


def _times(after: float, loss: float) -> str:
    return f"{after / loss:.1f} times" if after > 2 * loss else f"{after / loss - 1:.1%} above"


# ---- what others say ----


@dataclass(frozen=True)
class Heard:
    """How the command of a judge ended."""

    code: int | None = None  # exit status; negative where a signal ended it
    timed_out: bool = False
    error: str | None = None  # why it did not run
    last_words: str = ""  # the last line that it wrote


def decided(heard: Heard, timeout_seconds: float) -> tuple[bool | None, str]:
    """What a judge's end means: passed, rejected, or None where it did not decide; and the same in words."""
    said = f": {heard.last_words}" if heard.last_words else ""
    if heard.error is not None:
        return None, f"the judge could not be asked: {heard.error}"
    if heard.timed_out:
        return None, f"the judge gave no answer within {timeout_seconds:g} s{said}"
    if heard.code == PASSED:
        return True, f"passed by the judge{said}"
    if heard.code == FAILED:
        return False, f"rejected by the judge{said}"
    if heard.code is not None and heard.code < 0:
        return None, f"the judge was ended by signal {-heard.code}{said}"
    return None, f"the judge ended with exit code {heard.code}, which is no answer{said}"


def answered(question: Question, mode: str, passed: bool, who_and_why: str) -> Verdict:
    """The verdict that an answer makes of a question; the figures stay in it."""
    automatic = question.automatic
    reason = f"{who_and_why}; {automatic.reason}"
    return automatic.model_copy(update={"passed": passed, "mode": mode, "reason": reason, "at": now()})


def by_hand(question: Question) -> Verdict:
    """The verdict of a person."""
    assert question.answer is not None, "asked before"
    said = f": {question.words}" if question.words else ""
    how = "approved" if question.answer else "rejected"
    return answered(question, "human", question.answer, f"{how} by hand{said}")
