"""Checkpoints of the worker: copied, written aside, hashed, synced, renamed; the manifest comes last."""

import json
import platform
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
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
from daemon.worker import card
from daemon.worker.arithmetic import Arithmetic
from daemon.worker.evaluate import Examined, rng_states
from daemon.worker.finite import NotFinite
from daemon.worker.snapshot import Copies, State, lacking_memory
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
# Of what is loaded: looked up at import, since an upgrade may change what is installed under a living fork server.
VERSIONS = {**{name: version(name) for name in LIBRARIES}, "python": platform.python_version()}


def plan_digest(assignment: Assignment) -> str:
    """All that decides rows, order and arithmetic of a job, as one hash."""
    meta = files.read_json(Path(assignment.workspace) / assignment.tokens / "tokens.json") or {}
    settings = Settings.model_validate(assignment.settings)
    return checkpoints.lineage_digest(
        {
            # A release may have more settings than the one with which the job began.
            "settings": json.dumps(settings.model_dump(mode="json", exclude_defaults=True), sort_keys=True),
            "data": assignment.data_sha256,
            "tokens": str(meta.get("key")),
            "base": assignment.base_model_sha256,
            "job": assignment.job,
        }
    )


def versions(calculated: Arithmetic) -> dict[str, str]:
    """All whose change may round otherwise: libraries, processors, numbers, attention, kernels."""
    model = next((line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")), "unknown")
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    cpu = f"{model} ({torch.backends.cpu.get_cpu_capability()})"
    return {**VERSIONS, **calculated.names(), "processors": ", ".join([cpu, *gpus])}


def _cpu_lines() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is there."""

    folder: Path
    step: int  # of the job
    final: bool
    stall_seconds: float  # that training waited
    seconds: float  # until it was under its name
    aside: bool  # written while training went on
    bytes: int


class Saver:
    """Saves one job's checkpoints, and knows when one is due.

    Those in the middle of a training are copied in memory and written by a thread while training goes on, one at a
    time; without memory for the copy, and at the end, training waits. A save that fails is raised where it is settled.
    """

    def __init__(self, workspace: Workspace, assignment: Assignment, settings: Settings, heartbeat: Heartbeat) -> None:
        self.workspace, self.assignment, self.settings, self.heartbeat = workspace, assignment, settings, heartbeat
        self.exactness: Exactness = "statistical"
        self.inexact: str | None = None  # why it is no more than that, where the job did not go on as it began
        self.examined = Examined()
        self.saved: Path | None = None  # the newest checkpoint of this attempt
        self.waits_because: str | None = None  # why training waits for every save, in words
        self._copies = Copies()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._reserved: Future[None] | None = None
        self._running: Future[Saved] | None = None
        self._saved_at = time.monotonic()
        self._saved_step = 0

    def start_at(self, step: int) -> None:
        """Count the steps to the next save from here."""
        self._saved_step = step

    def due(self, job_step: int) -> bool:
        """Whether save_steps updates and save_min_seconds have passed since the last save, and it is written."""
        steps = job_step - self._saved_step
        return (
            steps >= self.settings.save_steps
            and time.monotonic() - self._saved_at >= self.settings.save_min_seconds
            and (self._running is None or self._running.done())
        )

    def prepare(self, trainer: JobTrainer) -> None:
        """Take the memory for copies while training goes on: a first touch takes ten times as long as the copy."""
        if trainer.state.max_steps - trainer.state.global_step <= self.settings.save_steps:
            return  # no save will be due before the last
        state = self._state(trainer, [], final=False)
        self.waits_because = lacking_memory(state)
        if self.waits_because is None:
            self._reserved = self._thread.submit(self._copies.reserve, state)

    def save(self, trainer: JobTrainer, losses: list[float], *, final: bool, wait: bool) -> list[Saved]:
        """Begin a save, and with `wait` end it; what is there now, an earlier one included."""
        before = self.heartbeat.phase
        self.heartbeat.beat(Phase.SAVE)  # first: the save under way may take long, and who waits must know for what
        try:
            return self._save(trainer, losses, final, wait)
        finally:
            self.heartbeat.beat(before)

    def _save(self, trainer: JobTrainer, losses: list[float], final: bool, wait: bool) -> list[Saved]:
        ended = self.settle()
        job_step = trainer.state.global_step
        if self.saved == self._target(job_step):
            return ended
        began = time.monotonic()
        state = self._state(trainer, losses, final)
        if not wait and self._reserved is not None:
            self._reserved.result()
            state = self._copies.of(state)
            self._running = self._thread.submit(self._write, trainer, state, began, time.monotonic() - began)
        else:
            ended.append(self._note(self._write(trainer, state, began, None)))
        self._saved_at, self._saved_step = time.monotonic(), job_step
        return ended

    def settle(self, *, wait: bool = True) -> list[Saved]:
        """The save that was under way, where it is there now. Raises what made it fail."""
        running = self._running
        if running is None or not (wait or running.done()):
            return []
        self._running = None
        return [self._note(running.result())]

    def close(self) -> None:
        """Let the save that is under way end, whatever comes of it."""
        self._thread.shutdown(wait=True)

    def _note(self, saved: Saved) -> Saved:
        self.saved = saved.folder
        self.heartbeat.beat(bytes_saved=saved.bytes)
        return saved

    def _target(self, job_step: int) -> Path:
        return self.workspace.checkpoint(self.assignment.base_step + job_step)

    def _state(self, trainer: JobTrainer, losses: list[float], final: bool) -> State:
        assert trainer.optimizer is not None, "there is no step without one"
        weights = self._model(trainer).state_dict()
        if self.settings.adapter:
            trained = {name for name, parameter in self._model(trainer).named_parameters() if parameter.requires_grad}
            weights = {name: tensor for name, tensor in weights.items() if name in trained}
        return State(
            model=weights,
            optimizer=trainer.optimizer.state_dict(),
            rng=rng_states(),
            progress={
                "losses": list(losses),
                "layout": trainer.updates.layout.value,
                "skipped_in_a_row": trainer.guard.in_a_row,
                "examined": asdict(self.examined),
                "loss_scale": trainer.loss_scale.state,
            },
            consumed=bytes(trainer.consumed),
            manifest=self._manifest(trainer, final),
        )

    def _write(self, trainer: JobTrainer, state: State, began: float, stall: float | None) -> Saved:
        """One transaction: all of it under its final name, or nothing."""
        target = self._target(state.manifest.job_step)
        _check_finite(state.model)
        with files.stage(target) as folder:
            self._write_model(trainer, state, folder)
            _save(state.optimizer, folder / OPTIMIZER)
            _save(state.rng, folder / RNG)
            files.write_json(folder / PROGRESS, state.progress)
            files.write(folder / checkpoints.CONSUMED, state.consumed)
            files.write(folder / card.NAME, card.card(state.manifest, self.assignment, self.settings))
            manifest = state.manifest.model_copy(update={"files": checkpoints.seal_files(folder)})
            manifest.save(folder / checkpoints.MANIFEST)
        checkpoints.prune(self.workspace, self.settings.save_total_limit)
        seconds, aside = time.monotonic() - began, stall is not None
        size = sum(seal.bytes for seal in manifest.files.values())
        return Saved(target, manifest.job_step, manifest.final, stall or seconds, seconds, aside, size)

    def _model(self, trainer: JobTrainer) -> Any:
        return trainer.accelerator.unwrap_model(trainer.model)

    def _write_model(self, trainer: JobTrainer, state: State, folder: Path) -> None:
        more = {"save_embedding_layers": False} if self.settings.adapter else {}
        self._model(trainer).save_pretrained(folder, state_dict=state.model, **more)
        base = self.workspace.root / self.assignment.base_model
        for name in TOKENIZER_FILES:
            if (base / name).is_file() and not (folder / name).exists():
                files.copy(base / name, folder / name)

    def _manifest(self, trainer: JobTrainer, final: bool) -> Manifest:
        given = self.assignment
        job_step = trainer.state.global_step
        stream, rows = trainer.updates.stream, len(trainer.consumed) // checkpoints.CONSUMED_BYTES
        here = Trained(
            job=given.job,
            file=given.file,
            sha256=given.data_sha256,
            rows=given.rows,
            epochs=stream.epochs,
            steps=job_step - given.first_step,
            rows_trained=rows - given.first_rows,
            stream_at=given.base_step if given.stream_at is None else given.stream_at,
        )
        return Manifest(
            job=given.job,
            attempt=given.attempt,
            step=given.base_step + job_step,
            base_step=given.base_step,
            job_step=job_step,
            job_total_steps=stream.total_steps,
            first_step=given.first_step,
            rows_consumed=rows,
            final=final,
            parent=given.parent,
            lineage=[*given.parent_lineage, here],
            base_model=given.base_model_sha256,
            method=self.settings.training_method,
            skipped_updates=trainer.guard.skipped,
            rate_changes=given.rate_changes,
            micro_batch_rows=trainer.updates.micro_batch_rows,
            micro_batch_asked=self.settings.micro_batch_rows,
            plan=plan_digest(given),
            versions=versions(trainer.arithmetic),
            threads=torch.get_num_threads(),
            exactness=self.exactness,
            inexact=self.inexact,
            created_at=now(),
            files={},
        )


def _check_finite(weights: dict[str, torch.Tensor]) -> None:
    """Such a model is never saved. Updates that are not finite are kept out, but a sum of finite ones may overflow."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NotFinite(f"the weights {name} are not finite any more, so they were not saved")


def _save(value: dict[str, Any], path: Path) -> None:
    """Into a file of Python's: given a path, torch.save keeps to itself what the disk said."""
    with path.open("wb") as file:
        torch.save(value, file)
