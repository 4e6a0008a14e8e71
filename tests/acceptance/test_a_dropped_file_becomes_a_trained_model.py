"""The main job: a file dropped into the inbox becomes a trained model, and the status tells the truth meanwhile."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.bench import COMMANDS, ENVIRONMENT, Bench, lines

ROOT = Path(__file__).parents[2]
MANY_READS = 100
READ_SECONDS = 0.03  # between two reads of the status
UNCERTAIN_SECONDS = 0.5  # what changed this shortly before `updated_at` may be in the status or not
CLOCK_SECONDS = 0.01  # times are written in milliseconds, those of folders by a coarser clock
LATE_SECONDS = 5.0  # a status published once a second by a loop that looks twice a second, on a busy machine
FROM_LOG = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "steps_per_second")
FROM_EVAL = ("validation_loss", "val_train_gap", "accuracy_percent", "think_tag_percent")
LOOK_AT_LATEST = """
import sys, torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
kind, latest, base = sys.argv[1:]
auto = AutoModelForCausalLM if kind == "full" else AutoPeftModelForCausalLM
tokens = AutoTokenizer.from_pretrained(latest)("What is the capital of Peru?", return_tensors="pt")
with torch.no_grad():
    trained = auto.from_pretrained(latest)(**tokens).logits
    untrained = AutoModelForCausalLM.from_pretrained(base)(**tokens).logits
assert torch.isfinite(trained).all() and trained.shape == untrained.shape
print(float((trained - untrained).abs().max()))
"""


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def watch_folders(bench: Bench, name: str) -> list[str]:
    """The states in which the file's job folder is seen, in order, until it has ended."""
    seen: list[str] = []

    def ended() -> bool:
        for state in ("normal", "processing", "completed", "failed", "rejected"):
            if any(job.endswith(f"-{name}") for job in bench.jobs(state)) and state not in seen[-1:]:
                seen.append(state)
        return bool({"completed", "failed", "rejected"} & set(seen))

    bench.wait(ended, 60, f"{name} comes to its end")
    return seen


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_jobs_folder_goes_its_way_and_latest_loads(method: str, make_demo: Callable[[], Bench]) -> None:
    bench = make_demo()
    bench.configure(training_method=method)
    bench.start()
    shutil.copy(bench.root / "samples/capitals.jsonl", bench.root / "inbox/x.jsonl")
    assert watch_folders(bench, "x") == ["normal", "processing", "completed"]
    base = bench.root / "models/base/tiny-qwen3"
    command = [sys.executable, "-P", "-c", LOOK_AT_LATEST, method, str(bench.latest()), str(base)]
    loaded = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert loaded.returncode == 0, loaded.stderr
    assert float(loaded.stdout.split()[-1]) > 0.1, "the model has learnt something"
    assert_records_agree(bench, *bench.jobs("completed"))


def assert_records_agree(bench: Bench, job: str) -> None:
    """Manifest, verdict, results and ledger, each written at its own time, tell the same."""
    manifest, run = bench.manifest(), bench.root / "runs" / job
    verdict = json.loads((run / "verdict.json").read_text())
    results = yaml.safe_load((run / "results.yaml").read_text())
    (ledger,) = lines(bench.root / "runs/ledger.jsonl")
    updates = bench.log(job, "log")[-1]["job_step"]
    assert ledger["outcome"] == "completed" and verdict["passed"] and results["gate"]["passed"]
    assert {bench.latest().name} == {verdict["checkpoint"], ledger["checkpoint"], Path(results["checkpoint"]).name}
    assert {updates} == {manifest["step"], ledger["steps"], results["total_steps"], manifest["lineage"][0]["steps"]}
    assert {120} == {ledger["rows"], results["files"][0]["rows"], manifest["lineage"][0]["rows"]}
    assert {manifest["method"]} == {results["method"]} == {bench.status()["training_method"]}
    losses = {verdict["validation_loss"], ledger["validation_loss"], results["metrics"]["holdout"]["loss"]}
    assert len(losses) == 1 and verdict["validation_loss"] < verdict["accepted_loss"]


# ---- the status ----


class Disk:
    """What folders and log say at one look, and since when."""

    def __init__(self, bench: Bench) -> None:
        folders = {f.name: f for f in (bench.root / "queue").iterdir() if f.is_dir() and not f.name.startswith(".")}
        self.moved = max(f.stat().st_mtime for f in folders.values())
        self.queue = {name: len(bench.jobs(name)) for name in folders}
        self.job = next(iter(bench.jobs("processing")), "")
        self.log = bench.log(self.job) if self.job else []
        self.saved = sorted(filter(None, map(saved, (bench.root / "current_model").glob("checkpoint-*"))))


def saved(checkpoint: Path) -> tuple[float, int] | None:
    """When a checkpoint got its name, and its step; None where it has just gone, superseded."""
    try:
        return checkpoint.stat().st_ctime, int(checkpoint.name.split("-")[1])
    except FileNotFoundError:
        return None


def true_states(disk: Disk, at: float) -> list[dict[str, Any]]:
    """What a status written at a moment may say: one state, or several where something changed just then."""
    states = []
    for count in range(1, len(disk.log) + 1):
        since, until = moment(disk.log[count - 1]["time"]), [moment(line["time"]) for line in disk.log[count:]][:1]
        if since <= at + CLOCK_SECONDS and (not until or until[0] > at - UNCERTAIN_SECONDS):
            states += as_status(disk.log[:count])
    return states


def as_status(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The status after these lines; none before the first figures."""
    logs, evals = ([line for line in log if line["kind"] == kind] for kind in ("log", "eval"))
    if not (logs and evals):
        return []
    last, total = log[-1], log[-1]["total_steps"]
    true = {
        "current_step": last["step"],
        "job_step": last["job_step"],
        "total_steps": total,
        "job_total_steps": total,
        "epoch": last["epoch"],
        "progress_percent": round(100 * last["job_step"] / total, 1),
        "current_example": logs[-1]["example"],
        "recent_examples": [example for line in evals for example in line["examples"]][-8:],
        **{key: logs[-1][key] for key in FROM_LOG},
        **{key: evals[-1][key] for key in FROM_EVAL},
    }
    return [true]


def true_checkpoints(disk: Disk, at: float) -> set[int | None]:
    """The newest checkpoint at a moment; several where one was saved just then."""
    old = [step for when, step in disk.saved if when <= at - UNCERTAIN_SECONDS]
    new = [step for when, step in disk.saved if at - UNCERTAIN_SECONDS < when <= at + CLOCK_SECONDS]
    return {old[-1] if old else None, *new}


def first_unseen(disk: Disk, status: dict[str, Any]) -> float:
    """Since how many seconds something is in the log that the status does not have."""
    unseen = [moment(line["time"]) for line in disk.log if moment(line["time"]) > moment(status["updated_at"])]
    return datetime.now(UTC).timestamp() - unseen[0] if unseen else 0.0


def read_while_training(bench: Bench) -> Iterator[tuple[Disk, dict[str, Any]]]:
    """The disk before the status is read, and the status; until the job has left processing."""
    while True:
        before, status, after = Disk(bench), bench.status(), Disk(bench)
        if not after.job:
            return
        if (before.queue, before.moved) == (after.queue, after.moved) and status["job"]:
            yield after, status
        time.sleep(READ_SECONDS)


def test_the_status_says_what_log_and_folders_say(make_demo: Callable[[], Bench]) -> None:
    bench = make_demo()
    bench.configure(num_train_epochs=40)
    bench.start()
    shutil.copy(bench.root / "samples/capitals.jsonl", bench.root / "inbox/x.jsonl")
    bench.wait_for("processing")
    bench.drop("waits.jsonl", (bench.root / "samples/urgent_capitals.jsonl").read_bytes())
    bench.drop("bad.jsonl", "no row\n")
    compared, published = 0, set()
    for disk, status in read_while_training(bench):
        if disk.job.endswith("-waits"):
            break
        assert first_unseen(disk, status) < LATE_SECONDS
        at = moment(status["updated_at"])
        states = true_states(disk, at)
        if disk.moved > at - UNCERTAIN_SECONDS or not states:
            continue
        assert {key: status[key] for key in states[0]} in states
        assert (status["last_checkpoint"] or {}).get("step") in true_checkpoints(disk, at)
        assert status["queue"] == disk.queue
        assert (status["job"]["id"], status["job"]["file"], status["job"]["rows"]) == (disk.job, "x.jsonl", 120)
        assert status["status"] in ("training", "evaluating", "saving") and status["accepted_step"] == 0
        compared, published = compared + 1, published | {status["updated_at"]}
    assert compared >= MANY_READS and len(published) >= 5, (compared, len(published))


# ---- the repository's root ----


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The repository as it is now, committed in a folder of its own."""
    folder = tmp_path / "checkout"
    listing = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", "all")
    return folder


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "safe.directory=*", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_repositorys_root_is_a_workspace_and_stays_clean(checkout: Path) -> None:
    bench = Bench(checkout)
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "TRAINING_BASE_DIR"}
    made = subprocess.run(
        [COMMANDS / "training_daemon", "init", ".", "--demo"], cwd=checkout, env=environment, capture_output=True
    )
    assert made.returncode == 0, made.stderr
    bench.daemon = subprocess.Popen(
        [COMMANDS / "training_daemon"], cwd=checkout, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        shutil.copy(checkout / "samples/capitals.jsonl", checkout / "inbox/x.jsonl")
        bench.wait_for_step(30)
        assert git(checkout, "status", "--porcelain") == ""
        bench.wait_for("completed")
    finally:
        bench.end()
    assert bench.manifest()["step"] == 120
    assert git(checkout, "status", "--porcelain") == ""
