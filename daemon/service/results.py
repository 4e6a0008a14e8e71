"""What a training left, beside its checkpoint: results.yaml for people, consumed.bin for the audit."""

import math
from typing import Any

import yaml

from daemon.core import files
from daemon.core.attempts import Evaluation, Manifest, Measured, SuiteFigures
from daemon.core.paths import Run, Workspace
from daemon.core.records import IntakeReport, Verdict
from daemon.jobs import history
from daemon.jobs.history import Line
from daemon.jobs.store import Found
from daemon.models import checkpoints
from daemon.service import assigning
from daemon.service.context import Context

NO_RESULTS_BEFORE = "the accepted model was not measured with this suite as it is now"


def write_results(context: Context, found: Found, manifest: Manifest, report: IntakeReport | None) -> Verdict | None:
    """results.yaml, and consumed.bin where the model contains what was trained; the verdict on it."""
    workspace, run = context.workspace, context.workspace.run(found.id)
    try:
        verdict = Verdict.load(run.verdict)
    except ValueError:
        verdict = None  # damaged after `latest` moved: what it said is lost, the model is not
    lines, measured = history.read(run.log), measured_of(run, manifest.step)
    facts: dict[str, Any] = {
        "experiment": found.id,
        "label": found.job.label,
        "attempt": manifest.attempt,
        "method": manifest.method,
        "model": assigning.job_settings(workspace, found, context.settings).model_name,
        **_trained(manifest, report),
        "training_time_hours": round(history.training_seconds(lines) / 3600, 6),
        "tokens": history.tokens(lines),
        "metrics": {
            "holdout": _holdout(run, verdict, lines),
            **_figures(measured.suites if measured else {}),
            "training": {"loss": history.final_loss(lines), "skipped_updates": manifest.skipped_updates},
            "throughput": _throughput(lines, measured),
            "memory_peak_gb": history.memory_peak_gb(lines),
        },
        "baselines": _baselines(workspace, manifest, verdict, measured),
        "gate": {"mode": verdict.mode, "passed": verdict.passed, "reason": verdict.reason} if verdict else None,
        "checkpoint": f"current_model/checkpoint-{manifest.step}",
    }
    files.write(run.results, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))
    if verdict is None or verdict.passed:
        files.write(run.consumed, (workspace.checkpoint(manifest.step) / checkpoints.CONSUMED).read_bytes())
    return verdict


def read_results(run: Run) -> dict[str, Any]:
    """What stands in results.yaml; empty where there is none, or it is not as it was written."""
    try:
        value = yaml.safe_load(run.results.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def _trained(manifest: Manifest, report: IntakeReport | None) -> dict[str, Any]:
    """What the weights contain, and what of the file they do not."""
    return {
        "base_version": manifest.parent.checkpoint if manifest.parent else "base",
        "previous_job": manifest.lineage[-2].job if manifest.parent and len(manifest.lineage) > 1 else None,
        "files": [
            {"file": t.file, "sha256": t.sha256, "rows": t.rows, "epochs": t.epochs, "steps": t.steps}
            for t in manifest.lineage
        ],
        "total_steps": manifest.step,
        "job_steps": manifest.job_step,
        "rows": {
            "trained": report.rows if report else None,
            "bad": report.bad_rows if report else None,
            "too_long": report.too_long_rows if report else None,
            "in_holdout": report.holdout_rows if report else None,
        },
    }


def measured_of(run: Run, step: int) -> Measured | None:
    """What the suites said of this checkpoint of a job; None where none did."""
    newest, checkpoint = run.newest_attempt(), f"checkpoint-{step}"
    for number in range(newest.number if newest else 0, 0, -1):
        try:
            measured = Measured.load(run.attempt(number).measured)
        except ValueError:
            continue
        if measured and measured.checkpoint == checkpoint:
            return measured
    return None


def _holdout(run: Run, verdict: Verdict | None, lines: list[Line]) -> dict[str, Any]:
    try:
        evaluation = Evaluation.load(run.attempt(verdict.attempt).evaluation) if verdict else None
    except ValueError:
        evaluation = None
    _, after = history.first_and_last_evaluation(lines)
    loss = verdict.validation_loss if verdict else None
    return {
        "loss": loss,
        "perplexity": None if loss is None else math.exp(min(loss, 700.0)),
        "rows": evaluation.rows if evaluation and evaluation.after is not None else None,
        "accuracy_percent": after.get("accuracy_percent") if after else None,
        "key": verdict.holdout_key if verdict else None,
    }


def _figures(suites: dict[str, SuiteFigures]) -> dict[str, dict[str, Any]]:
    """As they stand in results.yaml; the reason only where something is lacking."""
    dumped = {name: figures.model_dump(exclude={"schema_version"}) for name, figures in suites.items()}
    return {name: {k: v for k, v in found.items() if k != "reason" or v} for name, found in dumped.items()}


def _throughput(lines: list[Line], measured: Measured | None) -> dict[str, Any]:
    """Tokens a second."""
    return {
        "training": history.tokens_per_second(lines),
        "reading_by_length": measured.tokens_per_second if measured else {},
        "generating": measured.generated_tokens_per_second if measured else None,
    }


# ---- what it is compared with ----


def _baselines(
    workspace: Workspace, manifest: Manifest, verdict: Verdict | None, measured: Measured | None
) -> dict[str, Any]:
    """The same suites, and the same holdout, of the base model and of the accepted model before."""
    accepted = verdict.accepted_loss if verdict else None
    base = accepted if manifest.parent is None and not manifest.first_step else _base_loss(workspace, manifest, verdict)
    found: dict[str, Any] = {
        "base_model": {"holdout": {"loss": base}, **_figures(measured.base if measured else {})},
        "previous_version": None,
    }
    if manifest.parent:
        step = int(manifest.parent.checkpoint.rpartition("-")[2])
        before = measured_of(workspace.run(manifest.lineage[-2].job), step) if len(manifest.lineage) > 1 else None
        same = {name: _as_before(name, now, before) for name, now in (measured.suites if measured else {}).items()}
        found["previous_version"] = {"holdout": {"loss": accepted}, **_figures(same)}
    return found


def _base_loss(workspace: Workspace, manifest: Manifest, verdict: Verdict | None) -> float | None:
    """The base model's loss on the same holdout, as the lineage's first job has measured it."""
    first = read_results(workspace.run(manifest.lineage[0].job))
    if verdict is None or first.get("metrics", {}).get("holdout", {}).get("key") != verdict.holdout_key:
        return None
    return history.number(first.get("baselines", {}).get("base_model", {}).get("holdout", {}).get("loss"))


def _as_before(name: str, now: SuiteFigures, before: Measured | None) -> SuiteFigures:
    known = before.suites.get(name) if before else None
    if known and known.key == now.key:
        return known
    nothing = {"loss": None, "perplexity": None, "exact_match": None, "reason": NO_RESULTS_BEFORE}
    return now.model_copy(update=nothing)
