"""Checkpoints of the worker: written beside, hashed, synced, renamed; the manifest comes last."""

import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from daemon.core import files
from daemon.core.attempts import Assignment, Exactness, Manifest, Trained
from daemon.core.config import Settings
from daemon.core.heartbeat import Heartbeat, Phase
from daemon.core.paths import Workspace
from daemon.core.records import now
from daemon.models import checkpoints
from daemon.worker.evaluate import rng_states
from daemon.worker.trainer import JobTrainer

OPTIMIZER = "optimizer.pt"
RNG = "rng_state.pth"
PROGRESS = "progress.json"
# Files of a model folder that are the tokenizer's; they go along unchanged, so that the checkpoint stands alone.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "numpy", "training-daemon")


def plan_digest(assignment: Assignment) -> str:
    """All that decides rows, order and arithmetic of a job, as one hash."""
    meta = files.read_json(Path(assignment.workspace) / assignment.tokens / "tokens.json") or {}
    return checkpoints.lineage_digest(
        {
            "settings": repr(sorted(assignment.settings.items())),
            "data": assignment.data_sha256,
            "tokens": str(meta.get("key")),
            "base": assignment.base_model_sha256,
            "job": assignment.job,
        }
    )


@dataclass
class Saver:
    """Saves one job's checkpoints, and knows when one is due."""

    workspace: Workspace
    assignment: Assignment
    settings: Settings
    heartbeat: Heartbeat
    exactness: Exactness = "statistical"
    saved: Path | None = None  # the newest checkpoint of this attempt
    _saved_at: float = field(default_factory=time.monotonic)
    _saved_step: int = 0

    def start_at(self, step: int) -> None:
        """Count the steps to the next save from here."""
        self._saved_step = step

    def due(self, job_step: int) -> bool:
        """Whether save_steps updates and save_min_seconds have passed since the last save."""
        steps = job_step - self._saved_step
        return steps >= self.settings.save_steps and (
            time.monotonic() - self._saved_at >= self.settings.save_min_seconds
        )

    def save(self, trainer: JobTrainer, losses: list[float], *, final: bool) -> Path:
        """One transaction: all of it under its final name, or nothing."""
        job_step = trainer.state.global_step
        target = self.workspace.checkpoint(self.assignment.base_step + job_step)
        if self.saved == target:
            return target
        before = self.heartbeat.phase
        self.heartbeat.beat(Phase.SAVE)
        assert trainer.optimizer is not None, "there is no step without one"
        with files.stage(target) as folder:
            self._write_model(trainer, folder)
            torch.save(trainer.optimizer.state_dict(), folder / OPTIMIZER)
            torch.save(rng_states(), folder / RNG)
            files.write_json(folder / PROGRESS, {"losses": losses, "layout": trainer.updates.layout.value})
            manifest = self._manifest(trainer, folder, final)
            manifest.save(folder / checkpoints.MANIFEST)
        self.heartbeat.beat(before, bytes_saved=sum(seal.bytes for seal in manifest.files.values()))
        self.saved, self._saved_at, self._saved_step = target, time.monotonic(), job_step
        checkpoints.prune(self.workspace, self.settings.save_total_limit)
        return target

    def _write_model(self, trainer: JobTrainer, folder: Path) -> None:
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        more = {"save_embedding_layers": False} if self.settings.training_method == "lora" else {}
        model.save_pretrained(folder, **more)
        base = self.workspace.root / self.assignment.base_model
        for name in TOKENIZER_FILES:
            if (base / name).is_file() and not (folder / name).exists():
                files.copy(base / name, folder / name)

    def _manifest(self, trainer: JobTrainer, folder: Path, final: bool) -> Manifest:
        given = self.assignment
        job_step = trainer.state.global_step
        stream = trainer.updates.stream
        here = Trained(
            job=given.job,
            file=given.file,
            sha256=given.data_sha256,
            rows=given.rows,
            epochs=stream.epochs,
            steps=job_step,
        )
        return Manifest(
            job=given.job,
            attempt=given.attempt,
            step=given.base_step + job_step,
            base_step=given.base_step,
            job_step=job_step,
            job_total_steps=stream.total_steps,
            rows_consumed=min(job_step * stream.update_rows, stream.total_rows),
            final=final,
            parent=given.parent,
            lineage=[*given.parent_lineage, here],
            base_model=given.base_model_sha256,
            method=self.settings.training_method,
            plan=plan_digest(given),
            versions={**{name: version(name) for name in LIBRARIES}, "python": platform.python_version()},
            threads=torch.get_num_threads(),
            exactness=self.exactness,
            created_at=now(),
            files=checkpoints.seal_files(folder),
        )
