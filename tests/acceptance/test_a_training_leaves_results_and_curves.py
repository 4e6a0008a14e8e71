"""What a training leaves equals what anyone computes from its log.jsonl: results, curves, figures of the suites."""

import json
import struct
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from tests.acceptance.bench import Bench, chat, lines

ROOT = Path(__file__).parent.parent.parent
LONG = {"max_length": 512, "num_train_epochs": 12, "logging_steps": 7, "eval_steps": 40, "save_steps": 50}
METHODS = {"full": {}, "lora": {"training_method": "lora", "learning_rate": 5e-3}}
EASY, OTHER, IMPOSSIBLE = "Does 6 come before 8?", "Is 7 the name of a town?", "What did I dream of?"
COLUMNS = {
    "training": ("step", "loss", "learning_rate", "grad_norm", "tokens_per_second"),
    "evaluation": ("step", "validation_loss", "accuracy_percent", "think_tag_percent"),
}
KIND = {"training": "log", "evaluation": "eval"}


def sayings(start: int, count: int) -> list[dict[str, Any]]:
    """Two kinds of questions, each with the same answer: learned in a few seconds."""
    kinds = (("Does {} come before {}?", "Yes."), ("Is {} the name of a town?", "No."))
    return [chat(kinds[n % 2][0].format(n, n + 2), kinds[n % 2][1]) for n in range(start, start + count)]


def put_suite(bench: Bench, name: str, rows: list[dict[str, Any]] | str) -> None:
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    (bench.root / "data/benchmarks" / f"{name}.jsonl").write_text(text)


def suites(bench: Bench) -> None:
    question = {"messages": [{"role": "user", "content": IMPOSSIBLE}], "expected": "Of nine lives in Oman."}
    put_suite(bench, "three", [question, chat(EASY, "Yes."), chat(OTHER, "No.")])
    put_suite(bench, "easy", [chat(EASY, "Yes.")])
    put_suite(bench, "texts", [{"text": f"Yes. No {n}. Yes."} for n in range(3)])
    put_suite(bench, "damaged", "{half\n" * 3)


def trained_in_two_attempts(bench: Bench) -> str:
    """One file, paused in its middle; the job's id."""
    bench.hold_out(sayings(500, 6))
    bench.start()
    bench.drop("yes.jsonl", sayings(0, 80))
    job = bench.wait_for_step(30)
    bench.command("training_controller", "pause").check_returncode()
    bench.command("training_controller", "resume").check_returncode()
    assert bench.wait_for("completed", seconds=300) == [job]
    return job


def results(bench: Bench, job: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((bench.root / "runs" / job / "results.yaml").read_text())
    return found


def last_of_each_step(log: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    found = {line["step"]: line for line in log if line["kind"] == kind}
    return [found[step] for step in sorted(found)]


def seconds(log: list[dict[str, Any]], attempt: int) -> float:
    times = [datetime.fromisoformat(line["time"]) for line in log if line["attempt"] == attempt]
    return (times[-1] - times[0]).total_seconds()


def check_curves(run: Path, log: list[dict[str, Any]]) -> None:
    curves = json.loads((run / "curves.json").read_text())
    for part, columns in COLUMNS.items():
        counted = last_of_each_step(log, KIND[part])
        assert counted and curves[part] == {name: [line[name] for line in counted] for name in columns}
    saved = {line["step"] for line in log if line.get("event") == "saved"}
    border = next(line["step"] for line in log if line.get("event") == "started" and line["attempt"] == 2)
    assert curves["marks"] == {"attempts": [border], "checkpoints": sorted(saved), "skipped_updates": []}
    png = (run / "curves.png").read_bytes()
    assert png.startswith(b"\x89PNG") and min(struct.unpack(">II", png[16:24])) > 500
    assert ElementTree.fromstring((run / "curves.svg").read_bytes()).tag.endswith("svg")


def check_figures(found: dict[str, Any], log: list[dict[str, Any]], report: dict[str, Any]) -> None:
    counted, epochs = last_of_each_step(log, "log"), LONG["num_train_epochs"]
    assert found["tokens"] == {"seen": counted[-1]["tokens_seen"], "trained": counted[-1]["tokens_trained"]}
    assert found["tokens"] == {"seen": epochs * report["tokens"], "trained": epochs * report["trained_tokens"]}
    assert found["training_time_hours"] == pytest.approx((seconds(log, 1) + seconds(log, 2)) / 3600, abs=1e-6)
    metrics = found["metrics"]
    assert metrics["memory_peak_gb"] == round(
        max(line["memory_bytes"] for line in log if line["kind"] == "log") / 1e9, 3
    )
    assert metrics["training"] == {"loss": counted[-1]["loss"], "skipped_updates": 0}
    speeds = [line["tokens_per_second"] for line in counted]
    assert min(speeds) <= metrics["throughput"]["training"] <= max(speeds)
    evaluated = last_of_each_step(log, "eval")
    assert metrics["holdout"]["loss"] == evaluated[-1]["validation_loss"]
    assert found["baselines"]["base_model"]["holdout"]["loss"] == evaluated[0]["validation_loss"]
    assert found["total_steps"] == counted[-1]["step"] == 120
    assert found["gate"]["passed"] and found["files"][0]["rows"] == 80


def check_documented(found: dict[str, Any], curves: dict[str, Any]) -> None:
    page = (ROOT / "docs/reference/results.md").read_text()
    metrics, (one, *_) = found["metrics"], found["files"]
    parts = [found, metrics, found["baselines"], found["gate"], found["rows"], found["tokens"], one, metrics["damaged"]]
    parts += [metrics[name] for name in ("holdout", "training", "throughput")] + [curves, *curves.values()]
    keys = {key for part in parts if isinstance(part, dict) for key in part} - {
        "easy",
        "three",
        "texts",
        "huge",
        "damaged",
    }
    assert [key for key in sorted(keys - {"schema_version"}) if f"`{key}`" not in page] == []


def check_lacking(figures: dict[str, Any], why: str) -> None:
    assert figures["loss"] is figures["perplexity"] is figures["exact_match"] is None
    assert figures["reason"].startswith(why)


def check_suites(found: dict[str, Any]) -> None:
    metrics, base = found["metrics"], found["baselines"]["base_model"]
    assert (metrics["three"]["exact_match"], metrics["three"]["questions"]) == (pytest.approx(2 / 3), 3)
    assert (metrics["easy"]["exact_match"], base["easy"]["exact_match"]) == (1.0, 0.0)
    assert base["easy"]["perplexity"] > metrics["easy"]["perplexity"] > 1
    assert metrics["texts"]["exact_match"] is None and metrics["texts"]["perplexity"] > 1
    check_lacking(metrics["damaged"], "no row of damaged.jsonl can be used: line 1: ")
    assert set(metrics["throughput"]["reading_by_length"]) >= {64} and metrics["throughput"]["generating"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_results_and_curves_are_what_the_log_says(method: str, make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(**{**LONG, **METHODS[method]})
    suites(bench)
    job = trained_in_two_attempts(bench)
    run, first = bench.root / "runs" / job, results(bench, job)
    report = json.loads((bench.root / "queue/completed" / job / "report.json").read_text())
    check_curves(run, bench.log(job))
    check_figures(first, bench.log(job), report)
    check_suites(first)
    check_documented(first, json.loads((run / "curves.json").read_text()))
    page = (run / "report.md").read_text()
    for said in (
        "# yes.jsonl: completed",
        "attempt 1: paused",
        "three: exact match | 0 | – | 0.6667",
        "no row of damaged.jsonl",
        "Yes.",
    ):
        assert said in page, page
    assert "| yes.jsonl | 80 | 12 | 120 |" in (bench.latest() / "README.md").read_text()
    measured = lines(bench.root / "runs/baselines.jsonl")
    assert sorted(line["suite"] for line in measured) == ["easy", "texts", "three"]

    put_suite(bench, "huge", [{"text": f"{n} " + "it comes before that and that " * 12} for n in range(8000)])
    bench.drop("more.jsonl", sayings(100, 16))
    (later,) = set(bench.wait_for("completed", 2, seconds=300)) - {job}
    second = results(bench, later)
    base, previous = second["baselines"]["base_model"], second["baselines"]["previous_version"]
    assert previous["holdout"]["loss"] == first["metrics"]["holdout"]["loss"]
    for name in ("easy", "texts", "three"):
        assert previous[name] == first["metrics"][name]
    check_lacking(second["metrics"]["huge"], "no time: ")
    check_lacking(base.pop("huge"), "of the trained model")
    assert base == first["baselines"]["base_model"]
    assert lines(bench.root / "runs/baselines.jsonl") == measured, "measured once"
