"""The same content is trained once, however often it is dropped; a second time only on purpose."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.bench import Bench, lines, rows


@pytest.fixture(scope="module")
def bench(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench.make(tmp_path_factory.mktemp("duplicates") / "w", model)
    yield bench.start()
    bench.end()


def completed(bench: Bench) -> list[str]:
    """The files of the jobs that were completed, in their order."""
    return [line["file"] for line in lines(bench.root / "runs/ledger.jsonl") if line["outcome"] == "completed"]


def test_the_same_content_dropped_again_is_parked_with_the_command_that_trains_it(bench: Bench) -> None:
    bench.drop("first.jsonl", rows(8))
    bench.wait_for("completed")
    step = bench.manifest()["step"]
    bench.drop("second.jsonl", rows(8))
    (parked,) = bench.wait_for("failed", seconds=30)
    said = bench.command("training_queue", "show", parked).stdout
    command = f"training_queue retry {parked} --again"
    assert "the same content was trained before" in said and command in said
    assert bench.manifest()["step"] == step and completed(bench) == ["first.jsonl"]

    assert bench.command(*command.split()).returncode == 0
    assert bench.command("training_queue", "wait", parked).returncode == 0
    assert bench.manifest()["step"] == 2 * step and completed(bench) == ["first.jsonl", "second.jsonl"]
    assert bench.jobs("failed") == []


def test_of_two_files_with_the_same_content_that_wait_together_one_is_trained(bench: Bench) -> None:
    before, parked = completed(bench), bench.jobs("failed")
    assert bench.command("training_controller", "pause").returncode == 0
    bench.drop("one.jsonl", rows(8, start=50))
    bench.drop("two.jsonl", rows(8, start=50))
    bench.wait(lambda: len(list((bench.root / "queue/normal").glob("*/report.json"))) == 2, 30, "both are read")
    assert bench.command("training_controller", "resume").returncode == 0
    bench.wait(lambda: not bench.jobs("normal") + bench.jobs("processing"), 60, "both have ended")
    assert completed(bench) == [*before, "one.jsonl"]
    (new,) = set(bench.jobs("failed")) - set(parked)
    assert new.endswith("-two")
