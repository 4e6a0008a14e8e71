"""Three files in a row: what the model is fed, counted in its forward; the rate, read from the optimizer."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.acceptance.bench import Bench, as_bytes, lines, rows

WITNESS = Path(__file__).with_name("witness")
ROOT = Path(__file__).parents[2]  # the code under test, whichever checkout this is
COUNTS = (17, 29, 23)  # none divisible by the rows of an update
MICRO, ACCUMULATION, EPOCHS, RATE, WARMUP = 2, 3, 2, 2e-3, 7
UPDATE = MICRO * ACCUMULATION


@pytest.mark.parametrize(("method", "packing"), [("full", True), ("lora", True), ("full", False), ("lora", False)])
def test_three_files_in_a_row(
    method: str, packing: bool, make_bench: Callable[..., Bench], tmp_path: Path, model: Path
) -> None:
    bench = make_bench(
        training_method=method,
        packing=packing,
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=ACCUMULATION,
        num_train_epochs=EPOCHS,
        learning_rate=RATE,
        warmup_steps=WARMUP,
    )
    bench.environment |= {"PYTHONPATH": f"{WITNESS}:{ROOT}", "WITNESS_FILE": str(tmp_path / "witness.jsonl")}
    bench.start()
    files = [rows(count, start=100 * place) for place, count in enumerate(COUNTS)]
    for place, content in enumerate(files):
        bench.drop(f"file{place}.jsonl", content)
        bench.wait_for("completed", place + 1)

    seen = lines(tmp_path / "witness.jsonl")
    updates = [-(-count * EPOCHS // UPDATE) for count in COUNTS]
    assert bench.manifest()["step"] == sum(updates)
    assert [t["steps"] for t in bench.manifest()["lineage"]] == updates
    assert_each_row_once_an_epoch([h for x in seen if "fed" in x for h in x["fed"]], files, model)
    assert_the_audit_says_so(bench, tmp_path, files)
    rates = [x["rate"] for x in seen if "rate" in x]
    assert rates == pytest.approx([RATE * min(1, step / WARMUP) for step in range(sum(updates))], rel=1e-6)


def assert_the_audit_says_so(bench: Bench, folder: Path, files: list[list[dict[str, Any]]]) -> None:
    """Of a copy that lies elsewhere, from what the worker noted; each row, from the first to the last."""
    for place, content in enumerate(files):
        copy = folder / f"a copy {place}.jsonl"
        copy.write_bytes(as_bytes(content))
        done = bench.command("training_queue", "audit", str(copy), "--json")
        told = json.loads(done.stdout)
        assert told["rows_by_times"] == {str(EPOCHS): len(content)}
        assert [(s["first"], s["last"], s["times"]) for s in told["spans"]] == [(1, len(content), EPOCHS)]
        assert [job["in_model"] for job in told["jobs"]] == [True]


def assert_each_row_once_an_epoch(fed: list[str], files: list[list[dict[str, Any]]], model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    for content in files:
        expected = {hash_of(tokenizer.apply_chat_template(row["messages"])["input_ids"]) for row in content}
        assert len(expected) == len(content)
        mine, fed = fed[: EPOCHS * len(content)], fed[EPOCHS * len(content) :]
        assert Counter(mine) == dict.fromkeys(expected, EPOCHS)
        # The update in which the second epoch begins holds rows of both; packing may lay them in any order.
        before, after = UPDATE * (len(content) // UPDATE), UPDATE * -(-len(content) // UPDATE)
        assert len(set(mine[:before])) == before and set(mine[:after]) == expected
    assert not fed


def hash_of(ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()
