"""What an attempt has to bring back, and what must not move it, so that training goes on bit for bit."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daemon.core import files
from daemon.core.attempts import Manifest
from daemon.core.paths import Workspace
from daemon.models import checkpoints
from daemon.worker.train import Training
from tests.helpers_training import BASE, UPDATES, At, Going, make_attempt, make_place, make_training

AT = 3
STRETCHING = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
SHORT = 4  # tokens from which on positions stretch; the rows have four to eight


def draw() -> None:
    """From every generator, and an uneven number of times."""
    random.gauss(0, 1)
    np.random.standard_normal()
    torch.rand(3)


def draw_while(training: Training, *, trains: bool) -> None:
    training._model.register_forward_pre_hook(lambda model, _: draw() if model.training is trains else None)


def run(training: Training, *, save_at: int | None = None) -> dict[str, str]:
    """Train to the end, with a save on the way; the hashes of what is left."""
    trainer, saver = training._trainer, training.saver
    if save_at:
        trainer.add_callback(At(save_at, lambda: training._step.save(final=False, wait=True)))
    try:
        training.run()
        training.finish()
    finally:
        saver.close()
    sealed = checkpoints.read(saver.workspace.checkpoint(UPDATES))
    assert sealed
    return {
        name: f.sha256 for name, f in sealed.files.items() if name.endswith((".safetensors", ".pt", ".pth", ".bin"))
    }


def went_back(training: Training, root: Path) -> Workspace:
    """Another place, in which the same training came no further than its save on the way."""
    workspace = training.saver.workspace
    shutil.copytree(workspace.root, root)
    shutil.rmtree(root / workspace.checkpoint(UPDATES).relative_to(workspace.root))
    return Workspace(root)


def go_on(workspace: Workspace, **settings: Any) -> Training:
    return make_attempt(workspace, Going(resume=f"current_model/checkpoint-{AT}"), **settings)


def started(workspace: Workspace) -> dict[str, Any]:
    (*_, last) = [x for x in files.read_lines(workspace.run("job").log) if x.get("event") == "started"]
    return last


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # from peft
@pytest.mark.parametrize("method", ["full", "lora"])
def test_every_generator_goes_on_where_it_was(method: str, tmp_path: Path) -> None:
    straight = make_training(tmp_path / "straight", training_method=method)
    draw_while(straight, trains=True)
    whole = run(straight, save_at=AT)
    resumed = go_on(went_back(straight, tmp_path / "resumed"), training_method=method)
    draw_while(resumed, trains=True)
    assert run(resumed) == whole
    assert len(whole) == 4 and started(resumed.saver.workspace)["exactness"] == "bitwise"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # from peft
@pytest.mark.parametrize("method", ["full", "lora"])
def test_dropout_is_active(method: str, tmp_path: Path) -> None:
    """Without this, equal weights would prove less than they say."""
    seals = []
    for dropout in (0.0, 0.1):
        workspace = make_place(tmp_path / f"{dropout}")
        change_model(workspace, attention_dropout=dropout if method == "full" else 0.0)
        seals.append(run(make_attempt(workspace, training_method=method, lora={"dropout": dropout})))
    assert seals[0] != seals[1]


def test_evaluation_and_generation_do_not_move_training_whatever_they_draw(tmp_path: Path) -> None:
    quiet = run(make_training(tmp_path / "quiet"))
    watched = make_attempt(
        make_place(tmp_path / "watched"), Going(holdout=True), eval_steps=1, eval_examples=2, max_watching_percent=100
    )
    draw_while(watched, trains=False)
    assert run(watched) == quiet
    evaluations = [x for x in files.read_lines(tmp_path / "watched/runs/job/log.jsonl") if x["kind"] == "eval"]
    assert len(evaluations) == UPDATES + 1 and evaluations[0]["examples"][0]["model_output"]


def stretching(root: Path) -> Workspace:
    """A model whose positions depend on the longest text that it has seen."""
    workspace = make_place(root)
    change_model(workspace, max_position_embeddings=SHORT, rope_parameters=STRETCHING)
    return workspace


def change_model(workspace: Workspace, **config: Any) -> None:
    path = workspace.root / BASE / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def test_positions_that_stretch_do_not_remember_other_updates(tmp_path: Path) -> None:
    straight = make_attempt(stretching(tmp_path / "straight"))
    whole = run(straight, save_at=AT)
    assert run(go_on(went_back(straight, tmp_path / "resumed"))) == whole
    assert (
        run(make_attempt(stretching(tmp_path / "watched"), Going(holdout=True), eval_steps=1, max_watching_percent=100))
        == whole
    )


def another_version(workspace: Workspace) -> None:
    path = workspace.checkpoint(AT) / checkpoints.MANIFEST
    manifest = Manifest.load(path)
    assert manifest
    manifest.model_copy(update={"versions": {**manifest.versions, "torch": "2.0.0"}}).save(path)


def another_number_of_threads(workspace: Workspace) -> None:
    torch.set_num_threads(torch.get_num_threads() + 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [(another_version, f"torch: 2.0.0 before, {torch.__version__} now"), (another_number_of_threads, "threads: ")],
)
def test_what_may_round_otherwise_is_said(
    change: Callable[[Workspace], None], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    first = make_training(tmp_path / "first")
    run(first, save_at=AT)
    workspace = went_back(first, tmp_path / "second")
    change(workspace)
    try:
        run(go_on(workspace))
    finally:
        torch.set_num_threads(threads)
    assert words in started(workspace)["inexact"] and started(workspace)["exactness"] == "statistical"
    assert "not bit for bit" in capfd.readouterr().out
    last = checkpoints.read(workspace.checkpoint(UPDATES))
    assert last and last.inexact and last.exactness == "statistical"
