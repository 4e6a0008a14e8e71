"""Out of memory, in an update and in an evaluation: the same rows, each once, a few at a time."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.acceptance.bench import Bench, rows
from tests.acceptance.troubled import UPDATES, endings, final_seal, train, trained_times, troubled

METHODS = pytest.mark.parametrize("method", ["full", "lora"])


@METHODS
def test_the_update_is_made_again_with_half_the_micro_batch_and_the_lineage_remembers(
    make_bench: Callable[..., Bench], method: str
) -> None:
    trouble = {"out_of_memory_in": [8, 3], "trained_rows": 2}
    settings = {"training_method": method, "lora": {"dropout": 0}}  # what dropout draws follows the micro-batches
    bench = troubled(make_bench, "w", trouble, **settings).start()
    job = train(bench)
    assert endings(bench) == ["out_of_memory", "done"]
    assert set(trained_times(bench).values()) == {1}
    given = [json.loads(path.read_text()) for path in attempts(bench, job)]
    assert [a["micro_batch_rows"] for a in given] == [None, 2]
    assert given[1]["resume"] == "current_model/checkpoint-7"  # the beginning of the update that was given up
    manifest = bench.manifest()
    assert manifest["job_step"] == UPDATES and manifest["skipped_updates"] == 0
    assert "rows a micro-batch: 4 before, 2 now" in manifest["inexact"]
    smaller = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}
    other = troubled(make_bench, "smaller", {}, **settings, **smaller).start()
    same = train(other)
    assert difference(bench.latest(), other.latest()) < 1e-5
    assert bench.log(job, "log")[-1]["loss"] == pytest.approx(other.log(same, "log")[-1]["loss"], rel=1e-4)
    following = train(bench, "y.jsonl", 1000)
    assert json.loads(attempts(bench, following)[0].read_text())["micro_batch_rows"] == 2
    assert endings(bench) == ["out_of_memory", "done", "done"]


def test_a_single_row_that_does_not_fit_fails_with_a_remedy(make_bench: Callable[..., Bench]) -> None:
    bench = troubled(make_bench, "w", {"out_of_memory_in": [8, 3], "trained_rows": 0}).start()
    bench.drop("x.jsonl", rows(240))
    (job,) = bench.wait_for("failed", 1, 180)
    assert endings(bench) == ["out_of_memory"] * 3  # four rows, two, one
    record = json.loads((bench.root / f"queue/failed/{job}/job.json").read_text())
    assert "one row at a time takes more memory than there is" in record["reason"]
    assert "max_length" in record["remedy"]


@METHODS
def test_in_an_evaluation_it_leaves_the_training_as_it_was(make_bench: Callable[..., Bench], method: str) -> None:
    seals = []
    settings = {"eval_steps": 4, "max_watching_percent": 100, "training_method": method}
    for most in (100, 2, 0):
        bench = troubled(make_bench, f"w{most}", {"evaluated_rows": most}, **settings)
        bench.hold_out(rows(10, 5000))
        bench.start()
        job = train(bench)
        assert endings(bench) == ["done"]
        measured = [e["validation_loss"] for e in bench.log(job, "eval")]
        assert len(measured) == 5 and all((loss is None) == (most == 0) for loss in measured)
        seals.append((final_seal(bench), measured[-1] and round(measured[-1], 4)))
    assert seals[0][0] == seals[1][0] == seals[2][0]
    assert seals[0][1] == seals[1][1]


def attempts(bench: Bench, job: str) -> list[Path]:
    return sorted((bench.root / f"runs/{job}/attempts").glob("*/assignment.json"))


def difference(one: Path, other: Path) -> float:
    """The largest of any two weights."""
    name = next(n for n in ("model.safetensors", "adapter_model.safetensors") if (one / n).exists())
    first, second = load_file(one / name), load_file(other / name)
    return max(float(abs(first[key] - second[key]).max()) for key in first)
