"""`latest` damaged, missing or moved: noticed before it is used; back to the whole model before it; nothing is lost."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.bench import Bench, rows, seal

FILES = {f"file{n}.jsonl": rows(20, start=100 * n) for n in range(4)}


def one_bit_turned(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def weights_damaged(current_model: Path) -> None:
    one_bit_turned((current_model / "latest").resolve() / "model.safetensors")


def manifest_cut(current_model: Path) -> None:
    path = (current_model / "latest").resolve() / "manifest.json"
    os.truncate(path, path.stat().st_size // 2)


def folder_gone(current_model: Path) -> None:
    folder = (current_model / "latest").resolve()
    folder.rename(current_model.parent / "elsewhere")


def make(make_bench: Callable[..., Bench], name: str = "w") -> Bench:
    return make_bench(name, num_train_epochs=1, gate={"mode": "off"}, save_steps=1000)


def train(bench: Bench, *names: str) -> None:
    for name in names:
        done = len(bench.jobs("completed"))
        bench.drop(name, FILES[name])
        bench.wait_for("completed", done + 1)


def in_model(bench: Bench) -> list[str]:
    return [trained["file"] for trained in bench.manifest()["lineage"]]


@pytest.fixture(scope="module")
def calm(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What four files make of the model where nothing is damaged."""
    bench = Bench.make(
        tmp_path_factory.mktemp("calm") / "w", model, num_train_epochs=1, gate={"mode": "off"}, save_steps=1000
    )
    try:
        bench.start()
        train(bench, *FILES)
        return seal(bench.latest())
    finally:
        bench.end()


@pytest.mark.parametrize("damage", [weights_damaged, manifest_cut, folder_gone])
def test_back_to_the_model_before_and_what_it_lacks_is_trained_again(
    damage: Callable[[Path], None], make_bench: Callable[..., Bench], calm: str
) -> None:
    bench = make(make_bench)
    bench.start()
    train(bench, "file0.jsonl", "file1.jsonl", "file2.jsonl")
    before = bench.latest().name
    damage(bench.root / "current_model")
    bench.drop("file3.jsonl", FILES["file3.jsonl"])
    bench.wait(lambda: bench.events("trained_again"), 60, "the model before")
    bench.wait_for("completed", 4)
    assert in_model(bench) == list(FILES)
    assert seal(bench.latest()) == calm
    (event,) = bench.events("model_damaged")
    assert f"{before} is damaged" in event["message"] and len(event["undone"]) == 1
    assert [e["job"] for e in bench.events("trained_again")] == event["undone"]
    again = json.loads(bench.command("training_queue", "audit", "file2.jsonl", "--json").stdout)
    assert again["rows_by_times"] == {"1": 20}


def test_a_missing_latest_is_not_the_base_model(make_bench: Callable[..., Bench], calm: str) -> None:
    bench = make(make_bench)
    bench.start()
    train(bench, "file0.jsonl", "file1.jsonl", "file2.jsonl")
    (bench.root / "current_model/latest").unlink()
    train(bench, "file3.jsonl")
    assert in_model(bench) == list(FILES) and seal(bench.latest()) == calm
    assert "latest is missing" in bench.events("model_damaged")[0]["message"]


def test_where_no_whole_model_is_left_the_queue_waits_and_says_so(make_bench: Callable[..., Bench]) -> None:
    bench = make(make_bench)
    bench.start()
    train(bench, "file0.jsonl")
    weights_damaged(bench.root / "current_model")
    bench.drop("file1.jsonl", FILES["file1.jsonl"])

    def error() -> dict[str, Any] | None:
        found = bench.status().get("error")
        return found if found and found["class"] == "model" else None

    told = bench.wait(error, 60, "the error")
    assert "no whole one before it is left" in told["message"] and "copy" in told["remedy"]
    assert (len(bench.jobs("completed")), len(bench.jobs("processing"))) == (1, 0)
    one_bit_turned(bench.latest() / "model.safetensors")  # the copy is brought back
    bench.wait_for("completed", 2)
    assert in_model(bench) == ["file0.jsonl", "file1.jsonl"]


def test_a_job_that_contains_the_damaged_model_goes_on_from_its_own_checkpoint(
    make_bench: Callable[..., Bench], model: Path, tmp_path: Path
) -> None:
    bench = make_bench(num_train_epochs=1, gate={"mode": "off"}, save_steps=5)
    bench.start()
    train(bench, "file0.jsonl", "file1.jsonl")
    bench.drop("long.jsonl", rows(600, start=1000))
    bench.wait_for_step(20)
    assert bench.command("training_controller", "pause").returncode == 0
    weights_damaged(bench.root / "current_model")
    bench.command("training_controller", "resume").check_returncode()
    bench.wait_for("completed", 3)
    assert in_model(bench) == ["file0.jsonl", "file1.jsonl", "long.jsonl"] and not bench.events("model_damaged")


def test_latest_moved_by_hand_is_honoured_and_said(make_bench: Callable[..., Bench]) -> None:
    bench = make(make_bench)
    bench.start()
    train(bench, "file0.jsonl", "file1.jsonl")
    older = min((bench.root / "current_model").glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1]))
    link = bench.root / "current_model/latest"
    link.unlink()
    link.symlink_to(older.name)
    train(bench, "file2.jsonl")
    assert in_model(bench) == ["file0.jsonl", "file2.jsonl"]
    assert any("the model accepted last is" in e["message"] for e in bench.events("error"))
