"""Results -> verdict: whether a trained model may become the accepted one."""

import math

from daemon.core.attempts import Evaluation, Manifest
from daemon.core.config import Gate
from daemon.core.records import Verdict, now


def judge(
    gate: Gate,
    manifest: Manifest,
    checkpoint: str,
    evaluation: Evaluation,
    best: float | None,
    *,
    kept: bool = False,
) -> Verdict:
    """The verdict on a verified checkpoint: a final one, or one that is `kept`. Pure but for the time of day.

    `evaluation.before` is the accepted model's loss, `best` the lowest accepted so far, both on the same holdout.
    """
    passed, reason = _reasoned(gate, manifest, evaluation, best, kept)
    return Verdict(
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


def _reasoned(
    gate: Gate, manifest: Manifest, evaluation: Evaluation, best: float | None, kept: bool
) -> tuple[bool, str]:
    after = evaluation.after
    if not (manifest.final or kept):
        return False, "the training did not reach its end"
    figures = f"holdout loss {after:.4f}" if after is not None else "no holdout loss"
    if evaluation.before is not None:
        figures += f"; the accepted model's was {evaluation.before:.4f}"
    if gate.mode == "off":
        return True, f"the gate is off; {figures}"
    if evaluation.holdout_key is None:
        how = "kept as asked" if kept else "ended well"
        return True, f"{how}; there is no holdout, so nothing else was checked"
    if after is None or not math.isfinite(after):
        return False, "the holdout loss is not a finite number"
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
