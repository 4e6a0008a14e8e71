"""The workspace: every folder and file name, spelled once."""

import os
from dataclasses import dataclass
from pathlib import Path

from daemon.core.errors import NotFound
from daemon.core.records import ENDED_STATES, State

ENV_BASE_DIR = "TRAINING_BASE_DIR"

# Inside the folder of a job in the queue.
JOB_RECORD = "job.json"
JOB_REPORT = "report.json"
JOB_REJECTED_ROWS = "rejected.jsonl"
JOB_TOKENS = "tokens"
JOB_DIGESTS = "digests.bin"  # what each row trains; stays when the tokens go


@dataclass(frozen=True)
class Run:
    """The folder of one job's training: `runs/<job-id>/`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def log(self) -> Path:
        return self.root / "log.jsonl"

    @property
    def worker_log(self) -> Path:
        return self.root / "worker.log"

    @property
    def verdict(self) -> Path:
        return self.root / "verdict.json"

    @property
    def question(self) -> Path:
        """What the gate has asked a person."""
        return self.root / "question.json"

    @property
    def judge_log(self) -> Path:
        """What judges have said."""
        return self.root / "judge.log"

    @property
    def consumed(self) -> Path:
        """Which rows the job has trained, as its accepted checkpoint has it; kept when that is superseded."""
        return self.root / "consumed.bin"

    @property
    def results(self) -> Path:
        return self.root / "results.yaml"

    @property
    def curves(self) -> Path:
        """The data of the curves; the pictures lie beside it as curves.svg and curves.png."""
        return self.root / "curves.json"

    @property
    def report(self) -> Path:
        return self.root / "report.md"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    def attempt(self, number: int) -> "Attempt":
        return Attempt(self.attempts / str(number))

    def newest_attempt(self) -> "Attempt | None":
        """The attempt with the highest number, or None before the first."""
        numbers = [int(f.name) for f in _entries(self.attempts) if f.name.isdigit()]
        return self.attempt(max(numbers)) if numbers else None


@dataclass(frozen=True)
class Attempt:
    """The folder in which the daemon and one worker meet: `runs/<job-id>/attempts/<n>/`."""

    root: Path

    @property
    def number(self) -> int:
        return int(self.root.name)

    @property
    def job(self) -> str:
        return self.root.parent.parent.name

    @property
    def assignment(self) -> Path:
        return self.root / "assignment.json"

    @property
    def control(self) -> Path:
        return self.root / "control.json"

    @property
    def heartbeat(self) -> Path:
        return self.root / "heartbeat"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.json"

    @property
    def measured(self) -> Path:
        """What the suites of data/benchmarks say of the trained model."""
        return self.root / "measured.json"

    @property
    def stacks(self) -> Path:
        """Where the worker writes what each of its threads is doing, whenever it gets SIGUSR1."""
        return self.root / "stacks.txt"

    @property
    def outcome(self) -> Path:
        return self.root / "outcome.json"

    @property
    def exit(self) -> Path:
        return self.root / "exit.json"


@dataclass(frozen=True)
class Workspace:
    """One model lineage on disk. `root` is absolute."""

    root: Path

    @classmethod
    def at(cls, base_dir: Path | str | None = None) -> "Workspace":
        """The workspace named on the command line, else by TRAINING_BASE_DIR, else the current folder."""
        return cls(Path(base_dir or os.environ.get(ENV_BASE_DIR) or ".").resolve())

    @classmethod
    def existing(cls, base_dir: Path | str | None = None) -> "Workspace":
        """The same, refused where there is no workspace yet."""
        workspace = cls.at(base_dir)
        if not workspace.config.is_file():
            raise NotFound(
                f"{workspace.root} is not a workspace: it has no config.json.",
                "make one with: training_daemon init DIR --model PATH, or name another with --base-dir DIR",
            )
        return workspace

    @property
    def inbox(self) -> Path:
        return self.root / "inbox"

    @property
    def queue(self) -> Path:
        return self.root / "queue"

    def state(self, state: State) -> Path:
        return self.queue / state.value

    @property
    def current_model(self) -> Path:
        return self.root / "current_model"

    @property
    def latest(self) -> Path:
        return self.current_model / "latest"

    def checkpoint(self, step: int) -> Path:
        return self.current_model / f"checkpoint-{step}"

    @property
    def base_models(self) -> Path:
        return self.root / "models" / "base"

    @property
    def trash(self) -> Path:
        return self.root / "models" / "trash"

    @property
    def validation(self) -> Path:
        return self.root / "data" / "validation"

    @property
    def benchmarks(self) -> Path:
        return self.root / "data" / "benchmarks"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def run(self, job: str) -> Run:
        return Run(self.runs / job)

    @property
    def ledger(self) -> Path:
        return self.runs / "ledger.jsonl"

    @property
    def baselines(self) -> Path:
        """What the suites say of the base model: measured once, kept."""
        return self.runs / "baselines.jsonl"

    @property
    def status_folder(self) -> Path:
        return self.root / "status"

    @property
    def status(self) -> Path:
        return self.status_folder / "training_status.json"

    @property
    def events(self) -> Path:
        return self.status_folder / "events.jsonl"

    @property
    def wishes(self) -> Path:
        return self.status_folder / "wishes"

    @property
    def desired(self) -> Path:
        return self.status_folder / "desired.json"

    @property
    def daemon_lock(self) -> Path:
        return self.status_folder / "daemon.lock"

    @property
    def monitoring_costs(self) -> Path:
        """What watching costs the training that runs, or ran last."""
        return self.status_folder / "monitoring_costs.json"

    @property
    def worker_lock(self) -> Path:
        return self.status_folder / "worker.lock"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def stop_file(self) -> Path:
        return self.root / ".stop"

    def folders(self) -> list[Path]:
        """Every folder that a workspace has from the beginning."""
        return [
            self.inbox,
            *(self.state(s) for s in State),
            self.current_model,
            self.base_models,
            self.trash,
            self.validation,
            self.benchmarks,
            self.runs,
            self.wishes,
            self.logs,
        ]

    def ended_jobs(self) -> list[Path]:
        """The folders of all jobs that have ended, whatever their end."""
        return [f for s in ENDED_STATES for f in _entries(self.state(s))]


def _entries(folder: Path) -> list[Path]:
    try:
        return [f for f in folder.iterdir() if not f.name.startswith(".")]
    except FileNotFoundError:
        return []
