"""Publish: the status as it is, computed from the folders, the run's log and the heartbeat; never from memory alone."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from daemon.core.attempts import Outcome
from daemon.core.errors import WorkerExit
from daemon.core.heartbeat import Phase
from daemon.core.locks import boot_id
from daemon.core.records import now
from daemon.jobs import store
from daemon.jobs.store import Found
from daemon.models import checkpoints
from daemon.service.context import Context
from daemon.service.taking import read_report
from daemon.service.tracker import RunLog, process_id, resources

STALE_SECONDS = 90
QUIET_SECONDS = 10.0  # an idle daemon says so this often
RESOURCES_SECONDS = 5.0
GOOD_GAP, WARNING_GAP = 0.3, 0.5  # validation loss above training loss
PHASES = {
    Phase.LOAD: "starting",
    Phase.TRAIN: "training",
    Phase.EVALUATE: "evaluating",
    Phase.GENERATE: "evaluating",
    Phase.SAVE: "saving",
}


class Publishing:
    """The last step of the loop."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._run_log: RunLog | None = None
        self._resources: dict[str, Any] | None = None
        self._resources_at = 0.0
        self._verified: tuple[Path, bool] | None = None
        self.beats: dict[str, str] = {}

    async def step(self) -> None:
        if time.monotonic() - self._resources_at > RESOURCES_SECONDS or self._resources is None:
            self._resources = await resources(self._context.workspace.root)
            self._resources_at = time.monotonic()
        found = store.processing(self._context.workspace)
        await self._follow_log(found)
        self._context.tracker.say()
        self._context.tracker.publish(self._status(found), quiet_seconds=QUIET_SECONDS)

    async def publish_stopped(self) -> None:
        """The last word of a daemon that ends."""
        found = store.processing(self._context.workspace)
        await self._follow_log(found)
        status = {**self._status(found), "status": "stopped", "reason": None, "pid": None}
        self._context.tracker.publish(status, quiet_seconds=0)

    @property
    def longest_save_seconds(self) -> float:
        """Of the running job, as far as it was measured."""
        return self._run_log.longest_save_seconds if self._run_log else 0.0

    async def _follow_log(self, found: Found | None) -> None:
        if found is None:
            self._run_log = None
            return
        path = self._context.workspace.run(found.id).log
        if self._run_log is None or self._run_log.path != path:
            self._run_log = RunLog(path)
        await self._run_log.follow()

    def _status(self, found: Found | None) -> dict[str, Any]:
        context = self._context
        state, reason = self._state(found)
        settings = context.settings
        return {
            "schema_version": 1,
            "status": state,
            "reason": reason,
            "pid": process_id(),
            "boot_id": boot_id(),
            "daemon_started_at": context.tracker.started_at,
            "updated_at": now(),
            "stale_after_seconds": STALE_SECONDS,
            "model_name": settings.model_name,
            "model_version": None,
            "training_method": settings.training_method,
            "job": self._job(found),
            **self._progress(self._run_log),
            **self._evaluation(self._run_log),
            "queue": store.counts(context.workspace),
            **self._model(self._run_log),
            "resources": self._resources,
            "components": {name: {"healthy": True, "last_beat": beat} for name, beat in self.beats.items()},
            "alerts": [],
            "error": context.error,
        }

    def _state(self, found: Found | None) -> tuple[str, str | None]:
        context = self._context
        if context.ending or ((context.leaving or context.desired.stop == "now") and context.runner.alive()):
            return "stopping", None
        if context.runner.alive():
            beat = context.runner.beat()
            state = PHASES[beat.phase] if beat else "starting"
            return ("stopping", "user") if context.desired.paused else (state, None)
        if context.desired.paused:
            return "paused", context.desired.reason
        if context.blocking:
            return "paused", context.blocking["class"]
        if found is None:
            return "idle", None
        if context.judge.running:
            return "evaluating", "judge"
        newest = context.workspace.run(found.id).newest_attempt()
        outcome = Outcome.load(newest.outcome) if newest else None
        if outcome and outcome.code == WorkerExit.DONE:
            return "evaluating", None  # the gate is about to decide
        return ("recovering" if newest and newest.number > 1 else "starting"), None

    def _job(self, found: Found | None) -> dict[str, Any] | None:
        if found is None:
            return None
        newest = self._context.workspace.run(found.id).newest_attempt()
        report = read_report(found)
        return {
            "id": found.id,
            "file": found.job.file,
            "priority": found.job.priority,
            "attempt": newest.number if newest else None,
            "rows": report.rows if report else None,
            "bad_rows": report.bad_rows if report else None,
            "too_long_rows": report.too_long_rows if report else None,
            "label": found.job.label,
        }

    def _progress(self, run: RunLog | None) -> dict[str, Any]:
        last = run.last if run else None
        log = run.log if run else None
        keys = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "steps_per_second")
        numbers = {key: log[key] if log else None for key in keys}
        job_total = last["total_steps"] - (last["step"] - last["job_step"]) if last else None
        speed = numbers["steps_per_second"]
        return {
            "current_step": last["step"] if last else None,
            "total_steps": last["total_steps"] if last else None,
            "job_step": last["job_step"] if last else None,
            "job_total_steps": job_total,
            "epoch": last["epoch"] if last else None,
            "progress_percent": round(100 * last["job_step"] / job_total, 1) if last and job_total else None,
            "eta_seconds": round((job_total - last["job_step"]) / speed) if last and job_total and speed else None,
            **numbers,
            "skipped_updates": log.get("skipped_updates", 0) if log else 0 if run else None,
            "current_example": log["example"] if log else None,
        }

    def _evaluation(self, run: RunLog | None) -> dict[str, Any]:
        line = run.evaluation if run else None
        gap = line["val_train_gap"] if line else None
        return {
            "validation_loss": line["validation_loss"] if line else None,
            "val_train_gap": gap,
            "gap_rating": rating(gap),
            "accuracy_percent": line["accuracy_percent"] if line else None,
            "think_tag_percent": line["think_tag_percent"] if line else None,
            "generation_timeouts": run.generation_timeouts if run else None,
            "recent_examples": run.examples if run else [],
        }

    def _model(self, run: RunLog | None) -> dict[str, Any]:
        accepted = checkpoints.latest(self._context.workspace)
        manifest = checkpoints.read(accepted) if accepted else None
        return {
            "exactness": run.started["exactness"] if run and run.started else None,
            "inexact": run.started.get("inexact") if run and run.started else None,
            "accepted_step": manifest.step if manifest else 0,
            "last_checkpoint": self._last_checkpoint(),
        }

    def _last_checkpoint(self) -> dict[str, Any] | None:
        everything = checkpoints.every(self._context.workspace)
        manifest = checkpoints.read(everything[-1]) if everything else None
        if manifest is None:
            return None
        folder = everything[-1]
        if self._verified is None or self._verified[0] != folder:
            # The worker has hashed it a moment ago; here only what a look shows: every file is there in its size.
            whole = all(
                (folder / name).is_file() and (folder / name).stat().st_size == seal.bytes
                for name, seal in manifest.files.items()
            )
            self._verified = (folder, whole)
        age = datetime.now(UTC) - datetime.fromisoformat(manifest.created_at)
        return {
            "step": manifest.step,
            "path": str(folder.relative_to(self._context.workspace.root)),
            "verified": self._verified[1],
            "age_seconds": max(0, round(age.total_seconds())),
        }


def rating(gap: Any) -> str | None:
    """The words for validation loss − training loss."""
    if not isinstance(gap, float | int):
        return None
    return "good" if gap < GOOD_GAP else "warning" if gap <= WARNING_GAP else "overfitting"
