"""What the suites say of the base model: measured once, kept in runs/baselines.jsonl."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from peft import PeftModel

from daemon.core import files
from daemon.core.attempts import Baseline, SuiteFigures
from daemon.core.config import Settings
from daemon.core.paths import Workspace
from daemon.core.records import now
from daemon.worker.allowance import Unmeasured
from daemon.worker.loading import load_model
from daemon.worker.snapshot import MARGIN, free_memory


def known(workspace: Workspace, base_model_sha256: str) -> dict[str, SuiteFigures]:
    """The figures of this base model, by the key of their suite."""
    found = {}
    for line in files.read_lines(workspace.baselines):
        with suppress(ValueError):  # a damaged line: what it said is measured again
            baseline = Baseline.model_validate(line)
            if baseline.base_model_sha256 == base_model_sha256:
                found[baseline.figures.key] = baseline.figures
    return found


def keep(workspace: Workspace, base_model_sha256: str, suite: str, figures: SuiteFigures) -> None:
    line = Baseline(base_model_sha256=base_model_sha256, suite=suite, figures=figures, at=now())
    files.append_json(workspace.baselines, line)


@contextmanager
def base_model(model: Any, folder: Path, settings: Settings) -> Iterator[None]:
    """Let `model` be the base model: without its adapter, or, after full training, with other weights for good."""
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            yield
        return
    needed, free = int(MARGIN * sum(parameter.nbytes for parameter in model.parameters())), free_memory()
    if needed > free:
        raise Unmeasured(f"the base model takes {needed / 1e6:,.0f} MB of memory, {free / 1e6:,.0f} MB are free")
    model.load_state_dict(load_model(folder, None, settings, 0).state_dict())
    yield
