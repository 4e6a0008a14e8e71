"""`skip --keep`: what was learned passes the gate and becomes the model; a retry goes on at its row, each row once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.bench import Bench, lines, rows, seal

FIRST, SECOND, BETWEEN = rows(16), rows(203, start=100), rows(24, start=1000)
HOLDOUT = rows(8, start=5000)
TIMEOUT = 1200  # seconds, on a very busy machine
UPDATES = 51  # of the second file, over two epochs; the last one is smaller
pytestmark = pytest.mark.timeout(TIMEOUT)
SETTINGS: dict[str, Any] = {"num_train_epochs": 2, "save_steps": 10, "lora": {"dropout": 0.1}}


def begin(bench: Bench) -> str:
    """Train the first file, then the second as far as its tenth update; the id of its job."""
    bench.hold_out(HOLDOUT)
    bench.start()
    bench.drop("first.jsonl", FIRST)
    bench.wait_for("completed")
    bench.drop("second.jsonl", SECOND)
    return bench.wait_for_step(10)


def succeed(bench: Bench, *command: str) -> str:
    done = bench.command(*command)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def skip_and_keep(bench: Bench, job: str) -> int:
    """How many updates were kept, as everything that can be asked says alike."""
    latest = bench.latest()
    said = succeed(bench, "training_controller", "skip", "--keep")
    assert bench.jobs("skipped") == [job] and bench.latest() != latest
    kept = bench.manifest()
    steps = kept["job_step"]
    assert 10 <= steps < UPDATES and not kept["final"] and kept["job"] == job
    assert f"the model contains {steps} of its updates" in said
    line = lines(bench.root / "runs/ledger.jsonl")[-1]
    assert (line["job"], line["outcome"], line["steps"]) == (job, "skipped", steps)
    assert line["checkpoint"] == bench.latest().name and line["validation_loss"] is not None
    assert (
        f"{steps} of its {UPDATES} updates"
        in json.loads((bench.root / f"queue/skipped/{job}/job.json").read_text())["reason"]
    )
    verdict = json.loads((bench.root / f"runs/{job}/verdict.json").read_text())
    assert verdict["kept"] and verdict["passed"] and verdict["validation_loss"] == line["validation_loss"]
    audit = audit_of(bench)
    assert sum(int(times) * count for times, count in audit["rows_by_times"].items()) == 8 * steps
    return int(steps)


def audit_of(bench: Bench) -> dict[str, Any]:
    return json.loads(succeed(bench, "training_queue", "audit", "second.jsonl", "--json"))


def finish(bench: Bench, job: str, count: int) -> None:
    succeed(bench, "training_queue", "retry", job)
    bench.wait_for("completed", count)
    assert audit_of(bench)["rows_by_times"] == {"2": len(SECOND)}
    assert [line["outcome"] for line in lines(bench.root / "runs/ledger.jsonl") if line["job"] == job] == [
        "skipped",
        "completed",
    ]


def entries(bench: Bench, job: str) -> list[tuple[int, int]]:
    """What the lineage of the model says of a job: updates and rows."""
    return [(t["steps"], t["rows_trained"]) for t in bench.manifest()["lineage"] if t["job"] == job]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_kept_and_tried_again_is_bit_identical_to_never_skipped(
    method: str, make_bench: Callable[..., Bench], dropout_model: Path
) -> None:
    settings = {**SETTINGS, "training_method": method}
    calm = make_bench("calm", of=dropout_model, **settings)
    begin(calm)
    calm.wait_for("completed", 2)
    calm.end()

    bench = make_bench("kept", of=dropout_model, **settings)
    job = begin(bench)
    steps = skip_and_keep(bench, job)
    bench.end()
    bench.start()  # what was kept survives the daemon
    finish(bench, job, 2)
    began = [e["job_step"] for e in bench.log(job, "event") if e["event"] == "started"]
    assert began == [0, steps]
    assert bench.manifest()["step"] == calm.manifest()["step"]
    assert entries(bench, job) == [(UPDATES, 2 * len(SECOND))]
    assert seal(bench.latest()) == seal(calm.latest())


def test_after_another_file_the_rest_is_trained_upon_the_newer_model_each_row_once(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(**SETTINGS)
    job = begin(bench)
    steps = skip_and_keep(bench, job)
    bench.drop("between.jsonl", BETWEEN)
    bench.wait_for("completed", 2)
    between = bench.manifest()
    assert [t["file"] for t in between["lineage"]] == ["first.jsonl", "second.jsonl", "between.jsonl"]
    finish(bench, job, 3)
    assert entries(bench, job) == [(steps, 8 * steps), (UPDATES - steps, 2 * len(SECOND) - 8 * steps)]
    final = bench.manifest()
    assert final["step"] == between["step"] + UPDATES - steps == sum(t["steps"] for t in final["lineage"])
    assert final["parent"]["checkpoint"] == f"checkpoint-{between['step']}"


def test_what_does_not_pass_the_gate_is_rejected_and_a_retry_begins_at_the_first_row(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(**SETTINGS, gate={"max_regression": -0.9})
    bench.hold_out(HOLDOUT)
    bench.start()
    bench.drop("second.jsonl", SECOND)
    job = bench.wait_for_step(10)
    done = bench.command("training_controller", "skip", "--keep")
    assert done.returncode == 1 and "above the accepted model's" in done.stderr
    assert bench.jobs("rejected") == [job] and not (bench.root / "current_model/latest").exists()
    bench.configure(gate={"max_regression": 0.05})
    succeed(bench, "training_queue", "retry", job)
    bench.wait_for("completed")
    assert [e["job_step"] for e in bench.log(job, "event") if e["event"] == "started"] == [0, 0]
    assert audit_of(bench)["rows_by_times"] == {"2": len(SECOND)}


def test_while_paused_it_is_refused_with_a_holdout_and_done_without_one(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(**SETTINGS)
    job = begin(bench)
    succeed(bench, "training_controller", "pause")
    done = bench.command("training_controller", "skip", "--keep")
    assert done.returncode == 5 and "resume first" in done.stderr
    assert bench.jobs("processing") == [job]
    succeed(bench, "training_controller", "resume")
    bench.wait(lambda: bench.worker_pid() or bench.jobs("completed")[1:], 60, "the training goes on")
    skip_and_keep(bench, job)
