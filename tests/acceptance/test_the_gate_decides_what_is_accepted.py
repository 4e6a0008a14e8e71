"""The gate: `latest` moves where figures, judge or person say so and stays where they do not, also over crashes."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.core import locks
from tests.acceptance.bench import Bench, lines, rows

pytestmark = pytest.mark.timeout(1200)  # seconds, on a very busy machine
SECONDS = 120  # for what takes a few on a quiet one
HOLDOUT = rows(8, start=5000)
SPOILS = "learning_rate: 1\n"  # a rate at which every model forgets all that it knew
# Says who it is, keeps what it was given, and waits for its verdict.
PATIENT = 'echo $$ >> judges; cat > case.json; while [ ! -e verdict ]; do sleep 0.1; done; exit "$(cat verdict)"'
DEAF = "trap '' TERM; while :; do sleep 0.1; done"


class Accepted:
    """The accepted model at one moment."""

    def __init__(self, bench: Bench) -> None:
        self.name = bench.latest().name
        self.sha256 = hashlib.sha256((bench.latest() / "manifest.json").read_bytes()).hexdigest()
        self.step = bench.manifest()["step"]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Accepted) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"{self.name} {self.sha256}"


class Story:
    """Files for one workspace, each of its own rows, one after the other."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.number = bench, 0
        bench.hold_out(HOLDOUT)

    def drop(self, count: int = 8, *, spoils: bool = False) -> str:
        """Drop another file; its name."""
        self.number += 1
        name = f"f{self.number}"
        if spoils:
            self.bench.drop(f"{name}.yaml", SPOILS)
        self.bench.drop(f"{name}.jsonl", rows(count, start=10_000 * self.number))
        return f"{name}.jsonl"

    def ends(self, name: str, state: str) -> dict[str, Any]:
        """Wait until a file has ended so; its record and its verdict."""
        self.bench.wait(lambda: self.find(name, state), SECONDS, f"{name} in {state}")
        job = self.find(name, state)
        record = json.loads((self.bench.root / "queue" / state / job / "job.json").read_text())
        return {**record, "verdict": json.loads((self.bench.root / f"runs/{job}/verdict.json").read_text())}

    def find(self, name: str, state: str) -> str:
        stem = name.split(".")[0]
        return next((job for job in self.bench.jobs(state) if job.endswith(f"-{stem}")), "")

    def waits_for_approval(self, name: str) -> dict[str, Any]:
        """Wait until a person is asked; nothing runs then."""

        def asked() -> dict[str, Any] | None:
            status = self.bench.status()
            return status if (status["status"], status["reason"]) == ("paused", "approval") else None

        status: dict[str, Any] = self.bench.wait(asked, SECONDS, "a person is asked")
        assert self.find(name, "processing")
        assert status["job"]["file"] == name
        assert self.bench.worker_pid() is None
        assert "training_controller approve" in status["error"]["remedy"]
        return status

    def type(self, *words: str, code: int = 0) -> str:
        done = self.bench.command("training_controller", *words)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def completes(self, name: str, before: Accepted, updates: int = 1) -> Accepted:
        """The file has ended in the model, which grew from the one before."""
        record = self.ends(name, "completed")
        manifest = self.bench.manifest()
        assert (manifest["job"], manifest["step"]) == (record["id"], before.step + updates)
        assert manifest["parent"] == {**manifest["parent"], "checkpoint": before.name, "manifest_sha256": before.sha256}
        return Accepted(self.bench)

    def is_rejected(self, name: str, before: Accepted) -> dict[str, Any]:
        """The model is as it was, and nothing of the file's training lies beside it."""
        record = self.ends(name, "rejected")
        assert Accepted(self.bench) == before
        self.bench.wait(lambda: self.bench.status()["accepted_step"] == before.step, SECONDS, "the status says so")
        mine = [
            f
            for f in self.bench.root.glob("current_model/checkpoint-*")
            if self.bench.manifest(f)["job"] == record["id"]
        ]
        assert mine == []
        assert list(self.bench.root.glob("models/trash/*/checkpoint-*/manifest.json"))
        assert lines(self.bench.root / "runs/ledger.jsonl")[-1]["outcome"] == "rejected"
        return record


def judged_by(script: str, seconds: float = SECONDS) -> dict[str, Any]:
    return {"mode": "judge", "judge_command": ["sh", "-c", script], "judge_timeout_seconds": seconds}


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z" or locks.start_ticks(pid) is None


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A model that has something to forget: an adapter can make nothing worse of one that knows nothing."""
    bench = Bench.make(tmp_path_factory.mktemp("knowing") / "w", model, warmup_steps=0)
    bench.start()
    try:
        bench.drop("x.jsonl", rows(400, start=1))
        bench.wait_for("completed", 1, SECONDS)
        return bench.latest()
    finally:
        bench.end()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_figures_a_person_and_a_judge_decide_and_the_next_file_grows_from_what_was_accepted(
    method: str, make_bench: Callable[..., Bench], knowing: Path
) -> None:
    bench = make_bench(of=knowing, training_method=method, warmup_steps=0)
    story = Story(bench)
    bench.start()
    first = story.drop()
    story.ends(first, "completed")
    model = Accepted(bench)

    # the figures: worse than allowed
    record = story.is_rejected(story.drop(spoils=True), model)
    assert record["reason"].startswith("holdout loss") and "the accepted model's" in record["reason"]
    assert record["verdict"]["validation_loss"] > 1.05 * record["verdict"]["accepted_loss"]
    model = story.completes(story.drop(), model)

    # a person
    bench.configure(gate={"mode": "human"})
    name = story.drop()
    assert "holdout loss" in story.waits_for_approval(name)["error"]["message"]
    assert Accepted(bench) == model
    bench.kill_daemon()
    bench.start()
    story.waits_for_approval(name)
    assert "rejected" in story.type("reject", "--reason", "forgets names")
    record = story.is_rejected(name, model)
    assert record["verdict"]["mode"] == "human"
    assert record["reason"].startswith("rejected by hand: forgets names; holdout loss")
    assert "Nothing waits" in story.type("approve", code=5)

    name = story.drop(spoils=True)
    assert "% more is allowed" in story.waits_for_approval(name)["error"]["message"]
    story.type("skip", "--drop")
    assert bench.jobs("skipped") == [story.find(name, "skipped")]
    assert Accepted(bench) == model

    name = story.drop()
    story.waits_for_approval(name)
    bench.end_daemon()
    assert "approved" in story.type("approve")  # also where no daemon runs
    model = story.completes(name, model)
    bench.start()

    # what was kept of a file
    name = story.drop(200)
    bench.wait_for_step(2)
    assert "waits for approval" in story.type("skip", "--keep", "--timeout", str(SECONDS))
    story.waits_for_approval(name)
    assert Accepted(bench) == model
    story.type("approve")
    record = story.ends(name, "skipped")
    part = bench.manifest()
    assert (part["job"], part["final"], record["verdict"]["kept"]) == (record["id"], False, True)
    assert part["step"] == model.step + part["job_step"]
    model = Accepted(bench)

    # a judge
    bench.configure(gate=judged_by("cat > /dev/null; echo forgets names; exit 1"))
    record = story.is_rejected(story.drop(), model)
    assert (record["verdict"]["mode"], record["verdict"]["passed"]) == ("judge", False)
    assert record["reason"].startswith("rejected by the judge: forgets names; holdout loss")

    bench.configure(gate=judged_by(DEAF, seconds=1))
    name = story.drop()
    assert "no answer within 1 s" in story.waits_for_approval(name)["error"]["message"]
    assert Accepted(bench) == model
    story.type("reject")
    assert story.is_rejected(name, model)["verdict"]["mode"] == "human"

    bench.configure(gate=judged_by("cat > case.json; exit 0"))
    name = story.drop(spoils=True)
    passed = story.completes(name, model)
    case = json.loads((bench.root / "case.json").read_text())
    assert (case["checkpoint"], case["parent"]) == (str(bench.latest()), str(bench.root / "current_model" / model.name))
    assert (case["automatic_passed"], case["method"], case["manifest"]["step"]) == (False, method, passed.step)
    assert case["loss_after"] > 1.05 * case["loss_before"]


def test_a_crash_before_the_verdict_ends_in_the_gate_and_no_judge_is_waited_for_or_left_behind(
    make_bench: Callable[..., Bench], knowing: Path
) -> None:
    bench = make_bench(of=knowing, warmup_steps=0, gate=judged_by(PATIENT))
    story = Story(bench)
    bench.start()
    name = story.drop()

    def judge(number: int) -> int:
        """The process of the judge that was asked as this one of all."""
        path = bench.root / "judges"
        bench.wait(lambda: path.exists() and len(path.read_text().splitlines()) == number, SECONDS, f"judge {number}")
        return int(path.read_text().split()[-1])

    asked = judge(1)
    assert "nothing was paused" in story.type("resume")
    assert "the judge is being asked" in story.type("approve", code=5)
    bench.wait(lambda: bench.status()["reason"] == "judge", SECONDS, "the status says so")

    story.type("pause")
    assert gone(asked)
    story.type("resume")
    asked = judge(2)

    bench.kill_daemon()
    bench.wait(lambda: gone(asked), SECONDS, "the judge ends with the daemon")
    assert not (bench.root / "current_model/latest").exists()
    bench.start()
    asked = judge(3)

    assert bench.end_daemon() == 0
    assert gone(asked)
    bench.start()
    judge(4)
    assert not (bench.root / "current_model/latest").exists()
    (bench.root / "verdict").write_text("1")
    assert story.ends(name, "rejected")["verdict"]["mode"] == "judge"

    # nobody is there when the worker ends
    bench.configure(gate={"mode": "auto"})
    name = story.drop(spoils=True)
    attempt = "runs/{}/attempts/1/heartbeat"  # handed over, and alive
    bench.wait(lambda: (bench.root / attempt.format(story.find(name, "processing"))).exists(), SECONDS, "begun")
    bench.kill_daemon()
    outcome = bench.root / f"runs/{story.find(name, 'processing')}/attempts/1/outcome.json"
    bench.wait(outcome.exists, SECONDS, "the worker has ended")
    assert not (bench.root / "current_model/latest").exists()
    bench.start()
    record = story.ends(name, "rejected")
    assert "the accepted model's" in record["reason"]
    assert not (bench.root / "current_model/latest").exists()
