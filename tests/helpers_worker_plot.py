"""The plot of a training, explored in a process of its own: it needs torch, and a worker redirects its output.

`python -m tests.helpers_worker_plot ROOT RESULT` trains a very small model at ROOT and writes to RESULT what was found.
"""

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import Qwen3Config, Qwen3ForCausalLM

from daemon.core import files
from daemon.core.attempts import Assignment
from daemon.core.paths import Workspace
from daemon.core.records import State
from daemon.jobs import store
from daemon.models import base, checkpoints
from daemon.service import settling
from daemon.worker import __main__ as fork_server
from daemon.worker import attempt, embedded
from tests import helpers_data
from tests.helpers_plots import (
    ROWS,
    a_report_is_true,
    context_of,
    every_record_can_be_read,
    examine,
    run,
    take_and_start,
    the_only,
)
from tests.helpers_stories import Plot, explore

SETTINGS: dict[str, Any] = {
    "max_length": 256,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "save_steps": 2,
    "save_min_seconds": 0,
    "save_total_limit": 1,
    "logging_steps": 1,
    "eval_examples": 1,
    "max_new_tokens": 2,
    "gate": {"mode": "off"},
}


def small_model(folder: Path) -> None:
    """The embedded model's tokenizer with a network of a few thousand numbers: many states are built of it."""
    tokenizer = embedded.make_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    folder.mkdir(parents=True)
    Qwen3ForCausalLM(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make(root: Path) -> Workspace:
    workspace = Workspace.at(root)
    model = workspace.base_models / "small"
    small_model(model)
    base.Seal(sha256="d" * 64, source="here", files={}).save(model / base.SEAL)
    for folder in workspace.folders():
        files.make_folder(folder)
    workspace.config.write_text(json.dumps({"model_name": "small", "base_model": "models/base/small", **SETTINGS}))
    (workspace.validation / "h.jsonl").write_bytes(helpers_data.jsonl(helpers_data.chat("Who?", "Me.")))
    (workspace.benchmarks / "s.jsonl").write_bytes(helpers_data.jsonl({"text": "Which?"}))
    return workspace


def handed_over(workspace: Workspace) -> None:
    helpers_data.make_job(workspace.root, helpers_data.jsonl(*ROWS), "data.jsonl")
    examine(workspace)
    asyncio.run(take_and_start(context_of(workspace)))


def train(workspace: Workspace) -> None:
    newest = workspace.run(the_only(workspace).id).newest_attempt()
    assert newest
    code = attempt.run(newest.root)
    fork_server._record(newest, 4711, code << 8)


def what_was_said_to_be_saved_is_there(workspace: Workspace) -> None:
    """No checkpoint has its name before it is whole; one that the log names lasts until a newer one has come."""
    every_record_can_be_read(workspace)
    a_report_is_true(workspace)
    lines = files.read_lines(workspace.run(the_only(workspace).id).log)
    saved = [line["checkpoint"] for line in lines if line.get("event") == "saved"]
    there = [folder.name for folder in checkpoints.every(workspace)]
    assert not saved or any(int(name.split("-")[1]) >= int(saved[-1].split("-")[1]) for name in there)


async def settle_and_go_on(context: Any) -> None:
    await settling.settle(context)
    await take_and_start(context)


def is_trained_or_goes_on_from_what_was_saved(workspace: Workspace) -> None:
    what_was_said_to_be_saved_is_there(workspace)
    found = the_only(workspace)
    if found.state is State.COMPLETED:
        assert checkpoints.latest(workspace) == workspace.checkpoint(4)
        return
    assert found.state is State.PROCESSING
    newest = workspace.run(found.id).newest_attempt()
    assignment = Assignment.load(newest.assignment) if newest else None
    newest_saved = [str(f.relative_to(workspace.root)) for f in checkpoints.every(workspace)][-1:]
    if newest and not newest.outcome.exists():
        assert assignment and [assignment.resume] == (newest_saved or [None])


def is_settled(workspace: Workspace) -> None:
    """In the end of the recorded life nobody has looked at the outcome yet."""
    found = store.jobs(workspace, State.PROCESSING)
    if found and workspace.run(found[0].id).attempt(1).outcome.exists():
        assert checkpoints.damage(workspace.checkpoint(4)) is None
    else:
        is_trained_or_goes_on_from_what_was_saved(workspace)


TRAIN = Plot(handed_over, train, run(settle_and_go_on), what_was_said_to_be_saved_is_there, is_settled, make)


def main(root: Path, result: Path) -> None:
    explored = explore(TRAIN, root)
    values = asdict(explored) | {"sites": sorted(explored.sites)}
    result.write_text(json.dumps(values))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
