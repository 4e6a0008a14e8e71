"""Five files, trained one upon the other, interrupted ten times at random: the model must be that of a calm run."""

import hashlib
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from daemon.core import heartbeat
from tests.acceptance.bench import Bench, rows

FILES, INTERRUPTIONS = 5, 10
UPDATE_ROWS = 4
STATE = ("optimizer.pt", "rng_state.pth")  # beside the weights, what has to be equal byte for byte
NEW_ATTEMPT = ("worker killed", "daemon terminated", "paused", "skipped and retried")
SAME_ATTEMPT = ("daemon killed", "daemon hung up")
KINDS = (*NEW_ATTEMPT, *SAME_ATTEMPT)
PATIENCE_SECONDS, SLICE_SECONDS, NEAR_STEPS = 180, 0.004, 12


@dataclass(frozen=True)
class Case:
    """What a seed chooses; the same each time."""

    seed: int
    method: str
    packing: bool
    epochs: int
    rows: tuple[int, ...]  # of each file
    save_steps: int
    together: bool  # all files are dropped at once and queue, or one after the other
    plan: tuple[tuple[int, float, str], ...]  # file, share of its updates, kind; in their order

    @classmethod
    def of(cls, seed: int) -> "Case":
        draw = Random(seed)
        kinds = [*KINDS, *draw.sample(KINDS, INTERRUPTIONS - len(KINDS))]
        return cls(
            seed=seed,
            method=draw.choice(("full", "lora")),
            packing=draw.random() < 0.5,
            epochs=draw.choice((1, 2)),
            # The last one takes what the others were too small for.
            rows=(*(draw.randint(20, 200) for _ in range(FILES - 1)), draw.randint(100, 200)),
            save_steps=draw.choice((3, 5, 10)),
            together=draw.random() < 0.5,
            plan=tuple(sorted((draw.randrange(FILES), draw.random(), kind) for kind in draw.sample(kinds, len(kinds)))),
        )

    def settings(self) -> dict[str, Any]:
        return {
            "training_method": self.method,
            "lora": {"dropout": 0.1},
            "packing": self.packing,
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": UPDATE_ROWS // 2,
            "gradient_accumulation_steps": 2,
            "logging_steps": 1,
            "gate": {"mode": "off"},
        }

    def updates(self, file: int) -> int:
        return -(-self.rows[file] * self.epochs // UPDATE_ROWS)

    def __str__(self) -> str:
        layout, drop = "packed" if self.packing else "padded", "at once" if self.together else "one by one"
        return f"seed {self.seed}: {self.method}, {layout}, {self.epochs} epochs of {self.rows} rows, {drop}"


@dataclass
class Told:
    """What was done to a training, and what came of it."""

    interrupted: list[str] = field(default_factory=list)
    seconds: float = 0.0
    equal: bool = False


def name(file: int) -> str:
    return f"file{file}.jsonl"


def compare(case: Case, model: Path, folder: Path) -> Told:
    """Train the case's files undisturbed, and again with interruptions and evaluations in between."""
    began, told = time.monotonic(), Told()
    calm = train(case, Bench.make(folder / "calm", model, **case.settings()), Told(), ())
    often = {"eval_steps": 7, "max_watching_percent": 100, "save_steps": case.save_steps}
    disturbed = train(case, Bench.make(folder / "disturbed", model, **case.settings(), **often), told, case.plan)
    told.equal, told.seconds = calm == disturbed, time.monotonic() - began
    return told


def train(case: Case, bench: Bench, told: Told, plan: tuple[tuple[int, float, str], ...]) -> dict[str, str]:
    """The hashes of what five files leave, after the records were looked at."""
    bench.hold_out(rows(4, start=90_000))
    bench.start()
    try:
        if case.together:
            drop(bench, case, range(FILES))
        open_plan = list(plan)
        for file in range(FILES):
            if not case.together:
                drop(bench, case, [file])
            open_plan = interrupt(bench, case, file, open_plan, told)
            bench.wait_for("completed", file + 1, PATIENCE_SECONDS)
        assert not open_plan, f"not done: {open_plan}"
        check_records(bench, case, Counter(kind for _, _, kind in plan))
        return seal(bench.latest())
    finally:
        bench.end()


def drop(bench: Bench, case: Case, files: range | list[int]) -> None:
    for file in files:
        bench.drop(name(file), rows(case.rows[file], start=1000 * file))


# ---- interruptions ----


def interrupt(
    bench: Bench, case: Case, file: int, plan: list[tuple[int, float, str]], told: Told
) -> list[tuple[int, float, str]]:
    """Do what the plan has for a file; what is left, with what the training was too fast for."""
    missed = []
    for planned in [p for p in plan if p[0] <= file]:
        # The last update cannot be interrupted any more, and each interruption may take two.
        last = case.updates(file) - 2
        worker = Worker.hold(bench, file, 1 + int(planned[1] * 0.8 * last), last)
        if worker is None:
            missed.append(planned)
            continue
        told.interrupted.append(f"{planned[2]} {file + 1}:{worker.step}/{case.updates(file)}")
        DEEDS[planned[2]](bench, worker)
    later = [p for p in plan if p[0] > file]
    return sorted([*((file + 1, share, kind) for _, share, kind in missed), *later])


@dataclass(frozen=True)
class Worker:
    """A worker that stands still (SIGSTOP) in the middle of a file."""

    pid: int
    attempt: Path
    step: int

    @classmethod
    def hold(cls, bench: Bench, file: int, step: int, last: int) -> "Worker | None":
        """Hold the worker that trains a file, at this step; None where it has come beyond `last`, or has ended.

        It runs the last steps in slices of milliseconds, so that it does not run away on a busy machine.
        """
        job, until = f"-file{file}", time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            if any(done.endswith(job) for done in bench.jobs("completed")):
                return None
            worker = cls.see(bench)
            near = worker and worker.job.endswith(job) and worker.step >= step - NEAR_STEPS
            if worker and near and bench.worker_pid() == worker.pid:
                worker = worker.stand_still(bench)
                if step <= worker.step <= last:
                    return worker
                worker.go_on()
                if worker.step > last:
                    return None
            time.sleep(SLICE_SECONDS)
        raise AssertionError(f"step {step} of {name(file)} has not come\n{bench.last_words()}")

    def stand_still(self, bench: Bench) -> "Worker":
        with suppress(ProcessLookupError):  # it has ended in this moment
            os.kill(self.pid, signal.SIGSTOP)
        return self.see(bench) or self

    @classmethod
    def see(cls, bench: Bench) -> "Worker | None":
        """Who holds the worker's lock, or held it last, and how far it has come."""
        try:
            holder = json.loads((bench.root / "status/worker.lock").read_text())
        except (FileNotFoundError, ValueError):
            return None
        attempt = Path(holder["attempt"])
        beat = heartbeat.read(attempt / "heartbeat")
        return cls(holder["pid"], attempt, beat.job_step) if beat else None

    @property
    def job(self) -> str:
        return self.attempt.parts[-3]

    def go_on(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def obey(self, bench: Bench) -> None:
        """Let it go on once the daemon has told it what is wanted."""
        bench.wait((self.attempt / "control.json").exists, PATIENCE_SECONDS, "the order has reached the worker")
        self.go_on()


def kill_worker(bench: Bench, worker: Worker) -> None:
    os.kill(worker.pid, signal.SIGKILL)
    bench.wait(lambda: ended(bench, worker) == ["killed"], PATIENCE_SECONDS, "the daemon says that it was killed")


def terminate_daemon(bench: Bench, worker: Worker) -> None:
    assert bench.daemon
    bench.daemon.terminate()
    worker.obey(bench)
    assert bench.daemon.wait(PATIENCE_SECONDS) == 0
    assert bench.worker_pid() is None
    bench.start()
    bench.wait(lambda: ended(bench, worker) == ["stopped"], PATIENCE_SECONDS, "the daemon says that it has stopped")


def pause_and_resume(bench: Bench, worker: Worker) -> None:
    pause(bench, worker)
    succeed(bench, "training_controller", "resume")


def skip_and_retry(bench: Bench, worker: Worker) -> None:
    """It is trained before those that wait behind it, because it is older."""
    pause(bench, worker)
    succeed(bench, "training_controller", "skip")
    assert worker.job in bench.jobs("skipped") and not bench.jobs("processing")
    succeed(bench, "training_queue", "retry", worker.job)
    assert worker.job in bench.jobs("normal")
    succeed(bench, "training_controller", "resume")


def kill_daemon(bench: Bench, worker: Worker) -> None:
    bench.kill_daemon()
    worker.go_on()
    bench.start()


def hang_up(bench: Bench, worker: Worker) -> None:
    """SIGHUP: the daemon executes itself anew."""
    assert bench.daemon
    before = bench.status()["daemon_started_at"]
    bench.daemon.send_signal(signal.SIGHUP)
    worker.go_on()
    bench.wait(lambda: bench.status()["daemon_started_at"] != before, PATIENCE_SECONDS, "a daemon executed anew")


DEEDS: dict[str, Callable[[Bench, Worker], None]] = {
    "worker killed": kill_worker,
    "daemon terminated": terminate_daemon,
    "paused": pause_and_resume,
    "skipped and retried": skip_and_retry,
    "daemon killed": kill_daemon,
    "daemon hung up": hang_up,
}


def pause(bench: Bench, worker: Worker) -> None:
    asked = subprocess.Popen(
        bench.words("training_controller", "pause"), stdout=subprocess.PIPE, text=True, env=bench.environment, cwd="/"
    )
    worker.obey(bench)
    said, _ = asked.communicate(timeout=PATIENCE_SECONDS)
    assert asked.returncode == 0 and "verified" in said, said
    assert bench.worker_pid() is None
    bench.wait(lambda: ended(bench, worker) == ["paused"], PATIENCE_SECONDS, "the daemon says that it is paused")


def succeed(bench: Bench, *words: str) -> None:
    done = bench.command(*words)
    assert done.returncode == 0, (words, done.stdout, done.stderr)


def ended(bench: Bench, worker: Worker) -> list[str]:
    """How the daemon says that this attempt has ended; one that leaves and one that starts may both say it."""
    number = int(worker.attempt.name)
    events = bench.events("attempt_ended")
    return sorted({e["ending"] for e in events if (e["job"], e["attempt"]) == (worker.job, number)})


# ---- what is there afterwards ----


def check_records(bench: Bench, case: Case, done: Counter[str]) -> None:
    """Every row was trained as often as asked, no update is missing, and each interruption left its trace."""
    lineage = bench.manifest()["lineage"]
    assert [(t["file"], t["steps"]) for t in lineage] == [(name(f), case.updates(f)) for f in range(FILES)]
    for file, trained in enumerate(lineage):
        audit = json.loads(bench.command("training_queue", "audit", name(file), "--json").stdout)
        assert audit["rows_by_times"] == {str(case.epochs): case.rows[file]}, audit
        steps = {line["job_step"] for line in bench.log(trained["job"], "log")}
        assert steps == set(range(1, case.updates(file) + 1))
    begun = [e for t in lineage for e in bench.log(t["job"], "event") if e["event"] == "started"]
    assert len(begun) == FILES + sum(done[kind] for kind in NEW_ATTEMPT), "an adopted worker goes on as it was"
    assert {e["layout"] for e in begun} == {"packed" if case.packing else "padded"}
    daemons = done["daemon terminated"] + done["daemon killed"] + done["daemon hung up"]
    assert len(bench.events("daemon_started")) == 1 + daemons
    assert len(bench.events("skipped")) == done["skipped and retried"]


def seal(folder: Path) -> dict[str, str]:
    """The hash of the weights and of all that training goes on from, byte for byte."""
    weights = next(p for p in (folder / "model.safetensors", folder / "adapter_model.safetensors") if p.exists())
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (weights, *(folder / n for n in STATE))}
