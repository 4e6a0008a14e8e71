"""Status and list answer in under half a second, without torch in the process, with and without a daemon."""

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.bench import ENVIRONMENT, Bench, rows

COMMANDS = [("training_controller", "status"), ("training_queue", "list")]
LIMIT_SECONDS, CROWDED_SECONDS, CROWD = 0.5, 1.0, 2000
HEAVY = {"torch", "transformers", "numpy", "peft", "accelerate", "safetensors", "tokenizers"}
LOADED = """
import json, sys
from importlib import import_module
sys.argv = sys.argv[1:]
import_module(f"daemon.cli.{sys.argv[0]}").app(standalone_mode=False)
print("\\n" + json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def seconds(bench: Bench, *command: str) -> float:
    """Of a processor, the least of five calls: by the clock on the wall as much, where nothing else runs."""
    taken = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert bench.command(*command).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


@pytest.fixture
def training(make_bench: Callable[..., Bench]) -> Bench:
    bench = make_bench(num_train_epochs=400).start()
    bench.drop("now.jsonl", rows(40))
    bench.wait_for_step(3)
    return bench


def test_they_are_quick_without_a_daemon_and_say_that_none_runs(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.drop("lies.jsonl", rows(1))
    for command in COMMANDS:
        assert seconds(bench, *command) < LIMIT_SECONDS
    said = bench.command("training_controller", "status").stdout
    assert "daemon not running" in said and f"training_daemon --base-dir {bench.root}" in said
    assert "lies.jsonl" in bench.command("training_queue", "list").stdout


def test_they_are_quick_beside_a_training(training: Bench) -> None:
    for command in COMMANDS:
        assert seconds(training, *command) < LIMIT_SECONDS
        said = training.command(*command).stdout
        assert "now.jsonl" in said and "not running" not in said


def test_after_a_daemon_was_killed_nobody_is_shown_as_running(training: Bench) -> None:
    training.kill_daemon()
    shown = json.loads(training.command("training_controller", "status", "--json").stdout)
    assert (shown["status"], shown["daemon_running"], shown["pid"]) == ("stopped", False, None)
    assert "daemon not running" in training.command("training_controller", "status").stdout


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_neither_loads_torch(
    command: tuple[str, str], options: tuple[str, ...], make_bench: Callable[..., Bench]
) -> None:
    bench = make_bench()
    arguments = [*command, *options, "--base-dir", str(bench.root)]
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOADED, *arguments], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "daemon" in loaded and not loaded & HEAVY


def test_they_are_quick_with_two_thousand_files_waiting(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench().start()
    bench.command("training_controller", "pause").check_returncode()
    bench.drop("crowd.jsonl", rows(8))
    bench.wait(lambda: list(bench.root.glob("queue/normal/*/report.json")), 30, "the file is read")
    (job,) = bench.jobs("normal")
    bench.end()
    crowd(bench.root / "queue/normal", job)
    for command in COMMANDS:
        assert seconds(bench, *command) < CROWDED_SECONDS
    listed = json.loads(bench.command("training_queue", "list", "--json").stdout)
    assert [row["position"] for row in listed] == list(range(1, CROWD + 1))


def crowd(folder: Path, job: str) -> None:
    """Copies of a waiting job, up to the crowd."""
    record = json.loads((folder / job / "job.json").read_text())
    for number in range(2, CROWD + 1):
        other = f"{job[:16]}{number:04d}{job[20:]}"
        (folder / other).mkdir()
        (folder / other / "job.json").write_text(json.dumps({**record, "id": other}))
        shutil.copy(folder / job / "report.json", folder / other)
