"""`training_queue audit` tells of each row how often it was trained: left out, under way, dropped, trained again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.acceptance.bench import Bench, as_bytes, chat, rows

GOOD = rows(600)
BAD_LINE = 40


def mixed() -> bytes:
    """600 good rows, one bad one among them, and a blank line at the end."""
    lines = as_bytes(GOOD).splitlines(keepends=True)
    lines.insert(BAD_LINE - 1, as_bytes([chat("What?", "")]))
    return b"".join(lines) + b"\n"


def audit(bench: Bench, what: object) -> dict[str, Any]:
    done = bench.command("training_queue", "audit", str(what), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def spans(told: dict[str, Any]) -> list[tuple[int, int, int]]:
    return [(span["first"], span["last"], span["times"]) for span in told["spans"]]


def test_under_way_dropped_trained_and_trained_again(make_bench: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make_bench(num_train_epochs=1, save_steps=5, gate={"mode": "off"})
    copy = tmp_path / "a copy.jsonl"
    copy.write_bytes(mixed())
    bench.start()
    bench.drop("mixed.jsonl", mixed())
    bench.wait_for_step(20)
    assert bench.command("training_controller", "pause").returncode == 0
    under_way = audit(bench, copy)
    consumed = bench.manifest(newest(bench))["rows_consumed"]
    assert consumed == under_way["jobs"][0]["rows_trained"] == sum(s["pending"] * s["rows"] for s in under_way["spans"])
    assert 0 < consumed < len(GOOD) and under_way["rows_by_times"] == {"0": 601}
    assert not under_way["jobs"][0]["in_model"]

    bench.command("training_controller", "skip").check_returncode()
    bench.command("training_controller", "resume").check_returncode()
    (job,) = bench.wait_for("skipped")
    assert {span["pending"] for span in audit(bench, copy)["spans"]} == {0}

    bench.command("training_queue", "retry", job).check_returncode()
    bench.wait_for("completed")
    trained = audit(bench, copy)
    assert spans(trained) == [(1, 39, 1), (40, 40, 0), (41, 601, 1)]
    assert trained["spans"][1]["reason"] == "the assistant's text is empty"
    text = bench.command("training_queue", "audit", str(copy)).stdout
    assert "600 rows are in the model, trained once" in text
    assert "line 40                not trained: the assistant's text is empty" in text

    bench.command("training_queue", "add", str(copy), "--again").check_returncode()
    bench.wait_for("completed", 2)
    assert spans(audit(bench, job)) == [(1, 39, 2), (40, 40, 0), (41, 601, 2)]


def newest(bench: Bench) -> Path:
    return max((bench.root / "current_model").glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1]))


def test_a_file_that_no_job_has_had_is_told_from_one_that_is_not_there(
    make_bench: Callable[..., Bench], tmp_path: Path
) -> None:
    bench = make_bench()
    strange = tmp_path / "strange.jsonl"
    strange.write_bytes(as_bytes(rows(3)))
    for what in (strange, "nothing.jsonl"):
        done = bench.command("training_queue", "audit", str(what))
        assert done.returncode == 4 and "remedy: training_queue list --all" in done.stderr, done.stderr
