"""The accepted model goes on as it began: another method or adapter is refused aloud, and nothing is lost by it."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.bench import Bench, rows


@pytest.mark.parametrize(
    ("changed", "back", "said"),
    [
        ({"training_method": "full"}, {"training_method": "lora"}, "training_method full; the accepted model is lora"),
        ({"lora": {"r": 4, "dropout": 0.2}}, {"lora": None}, "another lora.r, lora.dropout than the accepted adapter"),
    ],
)
def test_it_waits_until_config_is_set_back(
    changed: dict[str, Any], back: dict[str, Any], said: str, make_bench: Callable[..., Bench]
) -> None:
    bench = make_bench(training_method="lora").start()
    bench.drop("x.jsonl", rows(16))
    bench.wait_for("completed", 1)
    accepted = bench.latest()
    bench.configure(**changed)
    bench.drop("y.jsonl", rows(16, start=50))
    bench.wait(lambda: said in ((bench.status()["error"] or {}).get("message") or ""), 30, "it is said")
    assert bench.status()["reason"] == "config" and "set" in bench.status()["error"]["remedy"]
    assert len(bench.jobs("normal")) == 1 and bench.latest() == accepted
    bench.configure(**back)
    bench.wait_for("completed", 2)
    assert bench.status()["error"] is None
