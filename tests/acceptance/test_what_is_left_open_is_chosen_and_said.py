"""With `preset: auto` what nobody has set follows from the rows, is shown before and after, and is what is trained."""

import json
from collections.abc import Callable

import pytest
import yaml

from tests.acceptance.bench import Bench, as_bytes, rows

LEFT_OPEN = {
    "preset": "auto",
    "per_device_train_batch_size": None,
    "gradient_accumulation_steps": None,
    "logging_steps": None,
}


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    bench = make_bench()
    bench.configure(**{**LEFT_OPEN, "num_train_epochs": None})
    return bench


def test_the_rows_decide_what_is_not_set(bench: Bench) -> None:
    content = rows(20)
    (bench.root / "x.jsonl").write_bytes(as_bytes(content))
    told = bench.command("training_queue", "validate", str(bench.root / "x.jsonl")).stdout
    assert "each row 3 times, 8 rows an update" in " ".join(told.split())
    bench.start().drop("x.jsonl", content)
    (done,) = bench.wait_for("completed", 1)
    frozen = yaml.safe_load((bench.root / "runs" / done / "config.yaml").read_text())
    assert (frozen["num_train_epochs"], frozen["effective_batch_size"], frozen["logging_steps"]) == (3, 8, 5)
    assert frozen["per_device_train_batch_size"] == 4, "as many as are of use without a GPU"
    assert frozen["eval_steps"] == 1000, "that was set"
    assert bench.manifest()["step"] == 60 // 8 + 1
    shown = json.loads(bench.command("training_queue", "show", done, "--json").stdout)
    assert shown["report"]["chosen"]["num_train_epochs"] == 3 and shown["report"]["estimated_steps"] == 8
    audit = json.loads(bench.command("training_queue", "audit", "x.jsonl", "--json").stdout)
    assert audit["rows_by_times"] == {"3": 20}


def test_what_a_sidecar_or_a_variable_sets_is_taken(bench: Bench) -> None:
    bench.environment["TRAINING_EFFECTIVE_BATCH_SIZE"] = "5"
    bench.start()
    (bench.root / "inbox/y.yaml").write_text("epochs: 1\n")
    bench.drop("y.jsonl", rows(20))
    (done,) = bench.wait_for("completed", 1)
    frozen = yaml.safe_load((bench.root / "runs" / done / "config.yaml").read_text())
    assert (frozen["num_train_epochs"], frozen["effective_batch_size"]) == (1, 5)
    assert bench.manifest()["step"] == 4
