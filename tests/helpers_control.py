"""A daemon whose worker is simulated: it writes the very files that a real one writes, an update at a time."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

from daemon import wishes
from daemon.core import config, files, heartbeat, locks
from daemon.core.attempts import Assignment, Control, Evaluation, ExitInfo, Manifest, Outcome, Trained
from daemon.core.heartbeat import Phase
from daemon.core.paths import Attempt, Workspace
from daemon.core.records import WAITING_STATES, Answer, Question, State, now
from daemon.data import intake
from daemon.jobs import store
from daemon.jobs.store import Found
from daemon.models import base, checkpoints
from daemon.service import asking, main
from daemon.service.runner import Runner
from tests import helpers_data
from tests.helpers_jobs import MANIFEST

UPDATES = 4  # of each file, one row each
WEIGHTS = "model.safetensors"  # here: every update that they contain, by job and row
STEPS = ("obey wishes", "take in", "settle what ended", "start next")


class Worker:
    """Trains row 1 at update 1 and so on; obeys at the end of an update, as the real one does."""

    def __init__(self, workspace: Workspace, attempt: Attempt, loss: float) -> None:
        self.workspace, self.attempt, self.loss = workspace, attempt, loss
        assignment = Assignment.load(attempt.assignment)
        assert assignment
        self.given = assignment
        self.lock = locks.Lock(workspace.worker_lock)
        self.lock.describe({"pid": 4711, "start_time": 0.0, "attempt": str(attempt.root)})
        self.page = heartbeat.Heartbeat(attempt.heartbeat)
        start = self._start()
        self.weights = (start / WEIGHTS).read_text() if start else ""
        self.saved = workspace.root / assignment.resume if assignment.resume else None
        self.step = self._resumed_at()
        self.lingers = False  # between its last update and its end

    def _start(self) -> Path | None:
        if self.given.resume:
            return self.workspace.root / self.given.resume
        return self.workspace.current_model / self.given.parent.checkpoint if self.given.parent else None

    def _resumed_at(self) -> int:
        manifest = checkpoints.read(self.saved) if self.saved else None
        return manifest.job_step if manifest else self.given.first_step

    def order(self) -> Control | None:
        return Control.load(self.attempt.control)

    def advance(self) -> bool:
        """Make an update, unless an order came before it; whether the worker still lives."""
        if self.step == self.given.total_steps:
            return self._end(None, evaluate=True)
        order = self.order()
        if order and order.action == "keep" and self.saved:
            return self._end(order, evaluate=True)
        if order and self.step == self._resumed_at():
            return self._end(order)
        self.step += 1
        self.weights += f"{self.given.job} {self.step}\n"
        self.page.beat(Phase.TRAIN, job_step=self.step)
        if self.step == self.given.total_steps:
            self._save(final=True)
            self.page.beat(Phase.EVALUATE)
            return self.lingers or self._end(None, evaluate=True)
        if order:
            if order.action != "drop":
                self._save(final=False)
            return self._end(order, evaluate=order.action == "keep")
        return True

    def save(self) -> None:
        """As every save_steps updates."""
        if self.step > self._resumed_at():
            self._save(final=False)

    def die(self, *, noted: bool) -> None:
        """Be killed; `noted`: the fork server lived to say so."""
        if noted:
            ExitInfo(pid=4711, code=None, signal=9, at=now()).save(self.attempt.exit)
        self.lock.release()

    def _end(self, order: Control | None, *, evaluate: bool = False) -> bool:
        given, name = self.given, self.saved.name if self.saved else None
        if evaluate and name:
            after = self.loss if given.holdout_key else None
            measured = Evaluation(holdout_key=given.holdout_key, rows=1, before=given.before, after=after)
            measured.model_copy(update={"checkpoint": name}).save(self.attempt.evaluation)
        kind = "done" if order is None else "paused" if order.action == "pause" else "stopped"
        code = {"done": 0, "paused": 10, "stopped": 11}[kind]
        Outcome(kind=kind, code=code, message=kind, checkpoint=name, job_step=self.step, at=now()).save(
            self.attempt.outcome
        )
        self.lock.release()
        return False

    def _save(self, *, final: bool) -> None:
        given = self.given
        target = self.workspace.checkpoint(given.base_step + self.step)
        if target.exists():
            return
        here = Trained(
            job=given.job,
            file=given.file,
            sha256=given.data_sha256,
            rows=given.rows,
            epochs=1,
            steps=self.step - given.first_step,
            rows_trained=self.step - given.first_step,
            stream_at=given.stream_at,
        )
        facts = {
            "job": given.job,
            "attempt": given.attempt,
            "step": given.base_step + self.step,
            "base_step": given.base_step,
            "job_step": self.step,
            "job_total_steps": given.total_steps,
            "first_step": given.first_step,
            "rows_consumed": self.step,
            "final": final,
            "parent": given.parent,
            "lineage": [*given.parent_lineage, here],
        }
        with files.stage(target) as folder:
            files.write(folder / WEIGHTS, self.weights)
            rows = b"".join(row.to_bytes(4, "little") for row in range(1, self.step + 1))
            files.write(folder / checkpoints.CONSUMED, rows)
            manifest = Manifest.model_validate(MANIFEST | facts)
            manifest.model_copy(update={"files": checkpoints.seal_files(folder)}).save(folder / checkpoints.MANIFEST)
        self.saved = target


class SimulatedRunner(Runner):
    """An attempt that is handed over lives at once."""

    worker: Worker | None = None
    loss = 1.0

    async def ensure_server(self) -> bool:
        return True

    async def hand_over(self, attempt: Attempt) -> None:
        assert not self.alive(), "one worker a workspace"
        type(self).worker = Worker(self._workspace, attempt, type(self).loss)


class Stage:
    """One workspace, its daemon and its worker."""

    def __init__(self, root: Path, *, holdout: bool = True) -> None:
        self.workspace = workspace = Workspace.at(
            helpers_data.make_workspace(root, per_device_train_batch_size=1, gradient_accumulation_steps=1)
        )
        for folder in workspace.folders():
            files.make_folder(folder)
        model = workspace.base_models / "small"
        (model / "config.json").write_text("{}")
        base.Seal(sha256="d" * 64, source="here", files={}).save(model / base.SEAL)
        if holdout:
            (workspace.validation / "h.jsonl").write_bytes(helpers_data.jsonl(helpers_data.chat("Who?", "Me.")))
        SimulatedRunner.worker, SimulatedRunner.loss = None, 1.0
        self.runner = SimulatedRunner
        self.daemon: main.Daemon | None = None
        self.dropped = 0
        self.start()

    # ---- the daemon ----

    def start(self) -> None:
        """As another process: all that it knows comes from the disk."""
        self.daemon = main.Daemon(self.workspace, config.load(self.workspace.config, {})[0])
        self.daemon._context.runner = SimulatedRunner(self.workspace, lambda: None)
        self.daemon._taking._start = self._read  # type: ignore[method-assign]

    def until_it_trains(self) -> None:
        for _ in range(3):  # read, found good, begun
            self.look()
        assert self.worker and self.worker.order() is None

    def kill(self) -> None:
        self.daemon = None

    def look(self, *steps: str) -> None:
        """A round of the daemon's loop; where that ends it, its last deeds too."""
        daemon = self.daemon
        if daemon is None:
            return

        async def live() -> None:
            await daemon._round({name: daemon.steps[name] for name in steps or STEPS})
            if daemon._over():
                daemon._publishing.publish_stopped = self._nothing  # type: ignore[method-assign]
                await daemon._stop()
                self.daemon = None

        asyncio.run(live())
        assert daemon._context.troubles.keys() <= {"approval"}, daemon._context.troubles

    def gate(self, mode: str) -> None:
        """Let this mode hold for the jobs that begin from now on."""
        given = json.loads(self.workspace.config.read_text())
        files.write_json(self.workspace.config, given | {"gate": {"mode": mode}})

    def question(self, job: str) -> Question | None:
        """What a person is asked about a job that is being trained."""
        asked = asking.newest_question(self.workspace, job) if self.processing() == job else None
        return asked if asked and asked.answer is None else None

    def obey_once(self) -> None:
        """As `training_daemon run --once`."""
        self.start()
        daemon, self.daemon = self.daemon, None
        assert daemon
        daemon._publishing.step = daemon._publishing.publish_stopped = self._nothing  # type: ignore[method-assign]
        daemon.steps["publish"] = self._nothing
        asyncio.run(daemon.once())

    async def _nothing(self) -> None:
        pass

    async def _read(self, found: Found) -> None:
        """Intake, in this process."""
        intake.examine(self.workspace, found.folder)

    # ---- the worker ----

    @property
    def worker(self) -> Worker | None:
        return SimulatedRunner.worker

    def advance(self) -> None:
        if self.worker and not self.worker.advance():
            SimulatedRunner.worker = None

    def kill_worker(self, *, noted: bool = True) -> None:
        if self.worker:
            self.worker.die(noted=noted)
            SimulatedRunner.worker = None

    # ---- people ----

    def drop(self) -> str:
        """A file that nobody has dropped before, taken in; the id of its job."""
        self.dropped += 1
        rows = [helpers_data.chat(f"File {self.dropped}, {n}?", f"It is {n}.") for n in range(UPDATES)]
        folder = helpers_data.make_job(self.workspace.root, helpers_data.jsonl(*rows))
        job = f"20260102T000000-{self.dropped:04d}-x"
        record = json.loads((folder / "job.json").read_text()) | {"id": job, "file": f"{self.dropped}.jsonl"}
        (folder / "job.json").write_text(json.dumps(record))
        folder.rename(folder.with_name(job))
        return job

    def wish(self, verb: str, job: str | None = None, lives_seconds: float = 3600, **options: Any) -> str:
        return wishes.send(self.workspace, verb, job, options, lives_seconds).id

    def answer(self, wish: str) -> Answer | None:
        return Answer.load(self.workspace.wishes / f"{wish}.answer.json")

    def settle(self, wish: str, rounds: int = 40) -> Answer:
        """Let daemon and worker go on until this wish is answered."""
        for _ in range(rounds):
            if self.daemon is None:
                self.start()  # its next life
            self.look()
            answer = self.answer(wish)
            if answer:
                return answer
            self.advance()
        raise AssertionError("no answer")

    # ---- what is ----

    def state(self, job: str) -> State | None:
        states = [state for state in State if (self.workspace.state(state) / job).exists()]
        assert len(states) <= 1
        return states[0] if states else None

    def attempts(self) -> int:
        return len(list(self.workspace.runs.glob("*/attempts/*")))

    def trained(self) -> Counter[tuple[str, int]]:
        """How often the accepted model contains each row of each job, by its weights."""
        latest = checkpoints.latest(self.workspace)
        words = (line.split() for line in (latest / WEIGHTS).read_text().splitlines()) if latest else ()
        return Counter((job, int(row)) for job, row in words)

    def in_model(self, job: str) -> list[int]:
        """The rows of a job in the accepted model; each once, the first ones, as its lineage says."""
        rows = sorted(row for (name, row), times in self.trained().items() if name == job for _ in range(times))
        part = checkpoints.part_in_model(self.workspace, job)
        assert rows == list(range(1, part.steps + 1)) and part.rows == part.steps
        return rows

    def waiting(self) -> list[str]:
        return [found.id for found in store.jobs(self.workspace, *WAITING_STATES)]

    def processing(self) -> str | None:
        return next(iter(store.names(self.workspace, State.PROCESSING)), None)
