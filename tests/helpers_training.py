"""A small training in this process, without a daemon: six updates of four rows on the embedded model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from daemon.core import files
from daemon.core.attempts import Assignment
from daemon.core.heartbeat import Heartbeat
from daemon.core.paths import Workspace
from daemon.data.tokens import TokensWriter, packed
from daemon.worker import embedded
from daemon.worker.callbacks import Orders
from daemon.worker.train import Result, Training

ROWS, UPDATES = 24, 6
BASE = "models/base/tiny"
SETTINGS = {
    "model_name": "m",
    "base_model": BASE,
    "save_steps": 4,
    "save_min_seconds": 10**6,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 1,
}


def make_training(root: Path, **settings: Any) -> Training:
    """A first attempt in a new workspace."""
    return make_attempt(make_place(root), **settings)


def make_place(root: Path) -> Workspace:
    """A workspace with the model, and the rows as a token cache that serves as the holdout too."""
    workspace = Workspace(root)
    for folder in (
        root / BASE,
        workspace.current_model,
        workspace.trash,
        workspace.status_folder,
        root / "tokens-parent",
    ):
        folder.mkdir(parents=True)
    embedded.make(root / BASE)
    with files.stage(root / "tokens") as folder, TokensWriter(folder) as writer:
        for n in range(ROWS):
            prompt = [10 + n] * (1 + n % 5)
            writer.append(packed([*prompt, 5, 6, 7]), bytes(len(prompt)) + b"\1\1\1", n + 1, n.to_bytes(16, "big"))
        writer.finish("0" * 64, "1" * 64, 0)
    return workspace


@dataclass(frozen=True)
class Going:
    """How an attempt of the same job goes on, and what it measures beside."""

    resume: str | None = None
    holdout: bool = False
    assigned: dict[str, Any] = field(default_factory=dict)  # what its assignment says besides


def make_attempt(workspace: Workspace, going: Going = Going(), **settings: Any) -> Training:
    """The next attempt of the job."""
    run = workspace.run("job")
    newest = run.newest_attempt()
    attempt = run.attempt(newest.number + 1 if newest else 1)
    attempt.root.mkdir(parents=True)
    assignment = Assignment(
        job="job",
        file="x.jsonl",
        data_sha256="0" * 64,
        attempt=attempt.number,
        workspace=str(workspace.root),
        settings={**SETTINGS, **settings},
        tokens="tokens",
        holdout="tokens" if going.holdout else None,
        holdout_key="3" * 64 if going.holdout else None,
        base_model=BASE,
        base_model_sha256="2" * 64,
        parent=None,
        parent_lineage=[],
        base_step=0,
        resume=going.resume,
        before=None,
        rows=ROWS,
        total_steps=UPDATES,
        **going.assigned,
    )
    return Training(assignment, attempt, Heartbeat(attempt.heartbeat), Orders(attempt), "bitwise")


def run(training: Training) -> Result:
    """To its end, as an attempt does."""
    try:
        training.run()
        return training.finish()
    finally:
        training.saver.close()


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step: int, deed: Callable[[], object]) -> None:
        self._step, self._deed = step, deed

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._step:
            self._deed()
