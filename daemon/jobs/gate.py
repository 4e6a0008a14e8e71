"""Results -> verdict: whether a trained model may become the accepted one."""

import math

from daemon.core.config import Gate
from daemon.core.records import Evaluation, Manifest, Verdict, now


def judge(gate: Gate, manifest: Manifest, checkpoint: str, evaluation: Evaluation, best: float | None) -> Verdict:
    """The verdict on a final, verified checkpoint. A pure function but for the time of day.

    `evaluation.before` is the accepted model's loss, `best` the lowest accepted so far, both on the same holdout.
    """
    passed, reason = _reasoned(gate, manifest, evaluation, best)
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
        at=now(),
    )


def _reasoned(gate: Gate, manifest: Manifest, evaluation: Evaluation, best: float | None) -> tuple[bool, str]:
    if not manifest.final:
        return False, "the training did not reach its end"
    if gate.mode == "off":
        return True, "the gate is off"
    if evaluation.holdout_key is None:
        return True, "ended well; there is no holdout, so nothing else was checked"
    if evaluation.after is None or not math.isfinite(evaluation.after):
        return False, f"the holdout loss is {evaluation.after}"
    bounds = [
        ("the accepted model's", evaluation.before, gate.max_regression),
        ("the best accepted model's", best, gate.max_regression_over_best),
    ]
    for whose, loss, allowed in bounds:
        if loss is not None and evaluation.after > loss * (1 + allowed):
            worse = evaluation.after / loss - 1
            return (
                False,
                f"holdout loss {evaluation.after:.4f} is {worse:.1%} above {whose} {loss:.4f} ({allowed:.0%} allowed)",
            )
    compared = "" if evaluation.before is None else f"; the accepted model's was {evaluation.before:.4f}"
    return True, f"holdout loss {evaluation.after:.4f}{compared}"
