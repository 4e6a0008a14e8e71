"""Updates that are not finite never reach the weights; a training that yields nothing else says so, and which rows."""

import json
from collections.abc import Callable

import pytest

from tests.acceptance.bench import Bench, rows
from tests.acceptance.troubled import ROWS, UPDATES, endings, train, trained_times, troubled

METHODS = pytest.mark.parametrize("method", ["full", "lora"])


@METHODS
def test_from_some_update_on_the_rate_is_halved_and_after_three_tries_the_rows_are_named(
    make_bench: Callable[..., Bench], method: str
) -> None:
    bench = troubled(make_bench, "w", {"not_finite_from": 8}, training_method=method).start()
    losses = watch_losses(bench)
    (job,) = bench.jobs("failed")
    assert endings(bench) == ["not_finite"] * 3
    assert 0 not in losses and "NaN" in losses
    given = [assignment(bench, job, attempt) for attempt in (1, 2, 3)]
    assert [a["resume"] for a in given] == [None, "current_model/checkpoint-5", "current_model/checkpoint-5"]
    changes = [[(c["from_step"], c["factor"]) for c in a["rate_changes"]] for a in given]
    assert changes == [[], [(5, 0.5)], [(5, 0.25)]]
    rates = {(x["attempt"], x["job_step"]): x["learning_rate"] for x in bench.log(job, "log")}
    assert rates[2, 6] == pytest.approx(rates[1, 6] / 2) and rates[3, 6] == pytest.approx(rates[1, 6] / 4)
    skipped = [e for e in bench.log(job, "event") if e["event"] == "update_skipped"]
    reason = record(bench, job)["reason"]
    assert reason.startswith("3 attempts were not finite") and str(skipped[-1]["lines"][0]) in reason
    assert len(given[2]["left_out"]) == 4 * 16  # they were in it twice
    assert not (bench.root / "current_model/latest").exists()
    assert len((bench.root / f"queue/failed/{job}/x.jsonl").read_text().splitlines()) == ROWS


@METHODS
def test_rows_that_were_in_it_twice_are_left_out_and_the_rest_is_trained(
    make_bench: Callable[..., Bench], method: str
) -> None:
    trouble = {"not_finite_from": 8, "not_finite_to": 11}
    bench = troubled(make_bench, "w", trouble, training_method=method).start()
    job = train(bench)
    assert endings(bench) == ["not_finite", "not_finite", "done"]
    left_out = assignment(bench, job, 3)["left_out"]
    times = trained_times(bench)
    assert len(left_out) == 64 and {line for line, n in times.items() if n == 0} == set(left_out)
    assert set(times.values()) == {0, 1}
    manifest = bench.manifest()
    assert manifest["rows_consumed"] == ROWS - 64 and manifest["job_step"] == UPDATES
    assert [c["factor"] for c in manifest["rate_changes"]] == [0.25]
    (event,) = [e for e in bench.log(job, "event") if e["event"] == "started" and e["attempt"] == 3]
    assert event["left_out"] == left_out


def watch_losses(bench: Bench) -> list[object]:
    """Every loss that the status showed until the job had failed."""
    shown: list[object] = []

    def failed() -> bool:
        loss = bench.status().get("loss")
        if not shown or shown[-1] != loss:
            shown.append(loss)
        return bool(bench.jobs("failed"))

    bench.drop("x.jsonl", rows(ROWS))
    bench.wait(failed, 180, "the job has failed")
    return shown


def assignment(bench: Bench, job: str, attempt: int) -> dict:
    return json.loads((bench.root / f"runs/{job}/attempts/{attempt}/assignment.json").read_text())


def record(bench: Bench, job: str) -> dict:
    return json.loads((bench.root / f"queue/failed/{job}/job.json").read_text())
