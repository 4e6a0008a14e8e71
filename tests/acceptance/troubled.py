"""Benches whose worker has a faulty model or machine, and what is looked at in all of their tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.acceptance.bench import Bench, rows, seal

ROOT = Path(__file__).parent.parent.parent
TROUBLE = Path(__file__).with_name("trouble")
# Updates of 16 rows, four micro-batches each; a checkpoint every five.
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "packing": False,
    "save_steps": 5,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "gate": {"mode": "off"},
}
ROWS, UPDATES = 240, 15


def troubled(make_bench: Callable[..., Bench], name: str, trouble: dict[str, Any], **settings: Any) -> Bench:
    """A daemon whose worker is troubled so."""
    bench = make_bench(name, **{**SETTINGS, **settings})
    bench.environment |= {"PYTHONPATH": f"{TROUBLE}:{ROOT}", "TROUBLE": json.dumps(trouble)}
    return bench


def train(bench: Bench, name: str = "x.jsonl", first: int = 0) -> str:
    """Drop a file of 240 rows and wait until it is in the model; the job's id."""
    done = len(bench.jobs("completed"))
    bench.drop(name, rows(ROWS, first))
    return bench.wait_for("completed", done + 1, 180)[-1]


def endings(bench: Bench) -> list[str]:
    return [event["ending"] for event in bench.events("attempt_ended")]


def trained_times(bench: Bench, name: str = "x.jsonl") -> dict[int, int]:
    """How often each line of a file was trained, as the audit says."""
    said = json.loads(bench.command("training_queue", "audit", name, "--json").stdout)
    return {line: span["times"] for span in said["spans"] for line in range(span["first"], span["last"] + 1)}


def final_seal(bench: Bench) -> str:
    return seal(bench.latest())
