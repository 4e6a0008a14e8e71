"""What a training left, beside its checkpoint: results.yaml for people, consumed.bin for the audit."""

from pathlib import Path
from typing import Any

import yaml

from daemon.core import files
from daemon.core.attempts import Manifest
from daemon.core.records import IntakeReport, Verdict
from daemon.jobs.store import Found
from daemon.models import checkpoints
from daemon.service import assigning
from daemon.service.context import Context


def write_results(context: Context, found: Found, manifest: Manifest, report: IntakeReport | None) -> Verdict | None:
    """results.yaml and consumed.bin: what the training left; the verdict on it."""
    workspace, run = context.workspace, context.workspace.run(found.id)
    try:
        verdict = Verdict.load(run.verdict)
    except ValueError:
        verdict = None  # damaged after `latest` moved: what it said is lost, the model is not
    facts: dict[str, Any] = {
        "experiment": found.id,
        "method": manifest.method,
        "model": assigning.job_settings(workspace, found, context.settings).model_name,
        "base_version": manifest.parent.checkpoint if manifest.parent else "base",
        "files": [{"file": t.file, "rows": t.rows, "epochs": t.epochs, "steps": t.steps} for t in manifest.lineage],
        "total_steps": manifest.step,
        "job_steps": manifest.job_step,
        "rows": {
            "trained": report.rows if report else None,
            "bad": report.bad_rows if report else None,
            "too_long": report.too_long_rows if report else None,
            "in_holdout": report.holdout_rows if report else None,
        },
        "training_time_hours": round(training_seconds(run.log) / 3600, 6),
        "metrics": {"holdout": {"loss": verdict.validation_loss if verdict else None}},
        "baselines": {"previous_version": {"loss": verdict.accepted_loss if verdict else None}},
        "gate": {"mode": verdict.mode, "passed": verdict.passed, "reason": verdict.reason} if verdict else None,
        "checkpoint": f"current_model/checkpoint-{manifest.step}",
    }
    files.write(run.results, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))
    files.write(run.consumed, (workspace.checkpoint(manifest.step) / checkpoints.CONSUMED).read_bytes())
    return verdict


def training_seconds(log: Path) -> float:
    """Seconds in which updates were made, summed over the attempts, from the speeds in the log."""
    seconds, steps_before = 0.0, 0
    for line in files.read_lines(log):
        if line["kind"] == "log" and line["job_step"] > steps_before and line["steps_per_second"]:
            seconds += (line["job_step"] - steps_before) / line["steps_per_second"]
            steps_before = line["job_step"]
    return seconds
