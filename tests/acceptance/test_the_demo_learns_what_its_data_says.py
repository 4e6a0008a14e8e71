"""The demo, run as its user runs it; and the proof that the right answers come from the data."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.acceptance.bench import COMMANDS, ENVIRONMENT, Bench, lines

SAMPLES = ("capitals.jsonl", "urgent_capitals.jsonl", "more_capitals.jsonl")


def ask(root: Path, model: Path) -> dict[str, Any]:
    """The golden questions to a model folder, by plain transformers in a process of its own."""
    golden = str(root / "data/benchmarks/capitals.jsonl")
    asked = subprocess.run(
        [sys.executable, "-P", "-m", "daemon.worker.answer", str(model), golden],
        capture_output=True,
        check=True,
        text=True,
        env=ENVIRONMENT,
    )
    answer: dict[str, Any] = json.loads(asked.stdout)
    return answer


def samples(root: Path) -> list[dict[str, Any]]:
    """The whole rows of all sample files."""
    rows = []
    for name in SAMPLES:
        for line in (root / "samples" / name).read_text().splitlines():
            if line.count("{") == line.count("}"):
                rows.append(json.loads(line))
    return [row for row in rows if row["messages"][-1]["role"] == "assistant"]


def test_the_demo_goes_from_wrong_to_right_and_can_be_run_again(tmp_path: Path) -> None:
    for place in ("demo", "demo-2"):
        told = subprocess.run(
            [COMMANDS / "training_daemon", "demo"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            timeout=120,
        )
        assert told.returncode == 0, told.stdout + told.stderr
        root = tmp_path / place
        assert ask(root, root / "models/base/tiny-qwen3")["right"] <= 1
        assert ask(root, root / "current_model/latest")["right"] >= 7
        for said in ("line 11:", "paused at step", "is verified", "queued as #1", "8 of 8 right", "results.yaml"):
            assert said in told.stdout


def test_half_of_the_golden_questions_are_in_no_training_row(make_demo: Callable[[], Bench]) -> None:
    root = make_demo().root
    asked = {row["messages"][-2]["content"] for row in samples(root)}
    golden = [row["messages"][-1]["content"] for row in lines(root / "data/benchmarks/capitals.jsonl")]
    assert len(golden) == 8
    assert sum(question not in asked for question in golden) == 4


def test_with_the_answers_exchanged_the_golden_answers_are_wrong(make_demo: Callable[[], Bench]) -> None:
    """Each answer goes to another question: a model that is right all the same has not learnt from the data."""
    bench = make_demo()
    rows = samples(bench.root)
    answers = sorted({row["messages"][-1]["content"] for row in rows})
    wrong = dict(zip(answers, answers[1:] + answers[:1], strict=True))
    for row in rows:
        row["messages"][-1]["content"] = wrong[row["messages"][-1]["content"]]
    bench.start()
    bench.drop("exchanged.jsonl", rows)
    bench.wait_for("completed")
    assert ask(bench.root, bench.latest())["right"] <= 1
