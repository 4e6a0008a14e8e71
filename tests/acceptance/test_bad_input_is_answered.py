"""Bad input ends in a clear message with a remedy; the data is kept, and the daemon goes on."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.bench import Bench, as_bytes, rows

GARBAGE = random.Random(1).randbytes(5000)
TABLE = b"PK\x03\x04 a table of an office program"
BAD_ROW = '{"messages": [{"role": "user", "content": "Who?"}]}'


def spoiled(bad: int) -> bytes:
    """A hundred rows, the first `bad` of each ten without an answer, line 50 first."""
    lines = [json.dumps(row) for row in rows(100, start=1000 * bad)]
    for place in range(bad):
        lines[(49 + 10 * place) % 100] = BAD_ROW
    return "\n".join([*lines, ""]).encode()


# name, content, sidecar, what the reason says, what the remedy says
FILES = [
    ("garbage.jsonl", GARBAGE, None, "rows are bad", "rejected.jsonl"),
    ("empty.jsonl", b"", None, "empty", "at least one row"),
    ("ten_bad.jsonl", spoiled(10), None, "10 of 100 (10 %) rows are bad", "rejected.jsonl"),
    ("table.xlsx", TABLE, None, ".xlsx is not a kind of file", ".jsonl"),
    ("notes", b"remember the milk\n", None, "without ending", ".jsonl"),
    ("settings.jsonl", as_bytes(rows(8, start=50)), "epoch: 3\n", "settings.yaml", "epochs"),
    ("value.jsonl", as_bytes(rows(8, start=60)), "epochs: many\n", "epochs", "value.yaml"),
    ("yaml.jsonl", as_bytes(rows(8, start=70)), "a: [\n", "yaml.yaml", "known keys"),
]


@pytest.fixture(scope="module")
def shared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench.make(tmp_path_factory.mktemp("bad") / "w", model)
    yield bench.start()
    bench.end()


@pytest.fixture
def bench(shared: Bench) -> Iterator[Bench]:
    """The daemon survives every test, and trains after it."""
    pid = shared.daemon_pid
    yield shared
    assert shared.daemon and shared.daemon.poll() is None and shared.status()["pid"] == pid
    done = len(shared.jobs("completed"))
    shared.drop(f"good{done}.jsonl", rows(3, start=10_000 + 10 * done))
    shared.wait_for("completed", done + 1, 30)


def job_of(bench: Bench, state: str, name: str) -> Path:
    """Where the job of a file lies, once it is in that state."""
    folder = bench.root / "queue" / state

    def find() -> Path | None:
        records = [f for f in folder.glob("*/job.json") if json.loads(f.read_text())["file"] == name]
        return records[0].parent if records else None

    found: Path = bench.wait(find, 30, f"{name} in {state}")
    return found


@pytest.mark.parametrize(("name", "content", "sidecar", "reason", "remedy"), FILES, ids=[f[0] for f in FILES])
def test_a_file_that_cannot_be_used(
    name: str, content: bytes, sidecar: str | None, reason: str, remedy: str, bench: Bench
) -> None:
    if sidecar:
        (bench.root / "inbox" / name).with_suffix(".yaml").write_text(sidecar)
    bench.drop(name, content)
    folder = job_of(bench, "failed", name)
    record = json.loads((folder / "job.json").read_text())
    assert reason in record["reason"] and remedy in record["remedy"]
    assert (folder / name).read_bytes() == content
    if sidecar:
        assert (folder / "sidecar.yaml").read_text() == sidecar
    shown = bench.command("training_queue", "show", name).stdout
    assert record["reason"] in shown and record["remedy"] in shown


def test_add_says_at_once_that_a_file_is_refused(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "added.jsonl").write_bytes(GARBAGE[::-1])
    said = bench.command("training_queue", "add", str(tmp_path / "added.jsonl"))
    assert said.returncode == 7 and "was refused" in said.stdout and "remedy" in said.stdout
    assert (tmp_path / "added.jsonl").read_bytes() == GARBAGE[::-1]


def test_one_bad_row_of_a_hundred_is_left_out_and_listed(bench: Bench) -> None:
    bench.drop("one_bad.jsonl", spoiled(1))
    folder = job_of(bench, "completed", "one_bad.jsonl")
    (refused,) = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert refused["line"] == 50 and refused["row"] == BAD_ROW and refused["reason"] and refused["fix"]
    assert bench.manifest()["lineage"][-1]["rows"] == 99
    assert (folder / "one_bad.jsonl").read_bytes() == spoiled(1)
    assert "line 50" in bench.command("training_queue", "show", "one_bad.jsonl").stdout


# ---- settings ----


def test_an_unknown_key_while_the_daemon_runs_leaves_the_old_settings_in_force(bench: Bench) -> None:
    bench.configure(num_train_epochs=2, num_trian_epochs=3)
    error = bench.wait(lambda: bench.status()["error"], 10, "the status shows the error")
    assert error["class"] == "config" and "num_trian_epochs" in error["message"]
    assert "num_train_epochs" in error["remedy"]
    bench.drop("meanwhile.jsonl", rows(8, start=200))
    job_of(bench, "completed", "meanwhile.jsonl")
    assert bench.manifest()["lineage"][-1]["epochs"] == 1
    bench.configure(num_train_epochs=None, num_trian_epochs=None)
    bench.wait(lambda: bench.status()["error"] is None, 10, "the error is over")


def test_a_config_that_is_no_json_while_the_daemon_runs(bench: Bench) -> None:
    good = (bench.root / "config.json").read_text()
    (bench.root / "config.json").write_text(good[:-20])
    error = bench.wait(lambda: bench.status()["error"], 10, "the status shows the error")
    assert error["class"] == "config" and error["remedy"]
    bench.drop("half.jsonl", rows(8, start=300))
    job_of(bench, "completed", "half.jsonl")
    (bench.root / "config.json").write_text(good)
    bench.wait(lambda: bench.status()["error"] is None, 10, "the error is over")


def test_an_unknown_key_at_the_start(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(lerning_rate=1e-4)
    refused = bench.command("training_daemon", "run")
    assert refused.returncode == 78
    assert "unknown key lerning_rate" in refused.stderr and "did you mean learning_rate?" in refused.stderr
    assert "Traceback" not in refused.stderr


# ---- the model ----


def assert_paused_for_the_model(bench: Bench) -> None:
    bench.wait(lambda: bench.status()["status"] == "paused", 10, "the daemon says that it cannot train")
    status = bench.status()
    assert status["reason"] in ("config", "environment")
    assert "models/base/nowhere" in status["error"]["message"] and "base_model" in status["error"]["remedy"]


def test_a_model_that_does_not_exist_while_the_daemon_runs(bench: Bench) -> None:
    there = json.loads((bench.root / "config.json").read_text())["base_model"]
    bench.configure(base_model="models/base/nowhere")
    assert_paused_for_the_model(bench)
    bench.drop("patient.jsonl", rows(8, start=400))
    waiting = job_of(bench, "normal", "patient.jsonl")
    assert (waiting / "patient.jsonl").read_bytes() == as_bytes(rows(8, start=400))
    said = bench.command("training_controller", "status").stdout
    assert "models/base/nowhere" in said and "remedy" in said
    bench.configure(base_model=there)
    job_of(bench, "completed", "patient.jsonl")


def test_a_model_that_does_not_exist_at_the_start(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    there = json.loads((bench.root / "config.json").read_text())["base_model"]
    bench.configure(base_model="models/base/nowhere")
    bench.start()
    assert_paused_for_the_model(bench)
    bench.drop("patient.jsonl", rows(8))
    job_of(bench, "normal", "patient.jsonl")
    bench.configure(base_model=there)
    job_of(bench, "completed", "patient.jsonl")


def test_init_with_a_model_that_does_not_exist(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "w")
    bench.environment["HF_HUB_OFFLINE"] = "1"
    refused = bench.command(
        "training_daemon", "init", str(bench.root), "--model", str(tmp_path / "nothing"), base_dir=False
    )
    assert refused.returncode == 4 and str(tmp_path / "nothing") in refused.stderr and "remedy" in refused.stderr
    assert not (bench.root / "config.json").exists()
