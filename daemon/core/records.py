"""Every file format as a frozen record; the states of a job and the table of allowed moves."""

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from daemon.core import files


def now() -> str:
    """UTC, ISO 8601, milliseconds: `2026-01-31T12:00:00.000Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class State(StrEnum):
    """The state of a job is the folder under `queue/` in which it lies."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    REJECTED = "rejected"
    SKIPPED = "skipped"


WAITING_STATES = (State.HIGH, State.NORMAL, State.LOW)
ENDED_STATES = (State.COMPLETED, State.FAILED, State.REJECTED, State.SKIPPED)

MOVES: dict[State, frozenset[State]] = {
    **{
        waiting: frozenset({*WAITING_STATES, State.PROCESSING, State.FAILED, State.SKIPPED}) - {waiting}
        for waiting in WAITING_STATES
    },
    State.PROCESSING: frozenset({*WAITING_STATES, *ENDED_STATES}),
    State.COMPLETED: frozenset(),
    State.FAILED: frozenset(WAITING_STATES),
    State.REJECTED: frozenset(WAITING_STATES),
    State.SKIPPED: frozenset(WAITING_STATES),
}

Priority = Literal["high", "normal", "low"]
Exactness = Literal["bitwise", "statistical"]


class Record(BaseModel):
    """A file format. Readers ignore fields that they do not know, so that newer writers do not break them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = 1

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """The record in `path`; None where there is no file. Raises ValueError where it is damaged."""
        value = files.read_json(path)
        return None if value is None else cls.model_validate(value)

    def save(self, path: Path) -> None:
        files.write_json(path, self)


class Job(Record):
    """`queue/<state>/<id>/job.json`: one dropped file."""

    id: str
    file: str  # the name as it was dropped, made printable
    data: str  # the name of the data file inside the job's folder
    bytes: int
    priority: Priority = "normal"
    label: str | None = None
    epochs: int | None = None  # of the sidecar; None = the workspace's setting
    learning_rate: float | None = None  # of the sidecar
    again: bool = False  # train it although the same content was trained before
    taken_in_at: str
    moved_at: str | None = None  # when it came into its present state
    reason: str | None = None  # why it lies in failed, rejected or skipped; in words
    remedy: str | None = None


class RejectedRow(Record):
    """One line of `rejected.jsonl`."""

    line: int
    reason: str
    fix: str
    row: str  # the beginning of the line as it was


class IntakeReport(Record):
    """`report.json`: what intake found in the file."""

    usable: bool  # may be trained
    file: str
    sha256: str
    bytes: int
    format: str | None  # messages, prompt/completion, …; None where no row was good
    rows: int  # good rows, those in the token cache
    bad_rows: int
    too_long_rows: int  # longer than max_length, left out or cut as excess_length says
    holdout_rows: int  # refused because they are in the holdout
    duplicate_rows: int  # good rows that stand in the file more than once
    tokens: int
    trained_tokens: int
    longest_row: int  # tokens
    estimated_steps: int  # updates, all epochs
    cache_key: str | None  # names tokenizer, template and options; None where there is no cache
    reason: str | None  # why it may not be trained, in words
    remedy: str | None
    warnings: list[str] = []
    checked_at: str
    seconds: float


class CheckpointName(Record):
    """A checkpoint, and the proof of which one it was."""

    checkpoint: str  # checkpoint-<global_step>
    manifest_sha256: str


class Trained(Record):
    """One dataset that the weights contain; `lineage` in a manifest is a list of these, oldest first."""

    job: str
    file: str
    sha256: str
    rows: int
    epochs: int
    steps: int  # updates taken for it


class FileSeal(Record):
    bytes: int
    sha256: str


class Manifest(Record):
    """`manifest.json` in a checkpoint, written last: it is whole, and this is what it contains."""

    job: str
    attempt: int
    step: int  # global_step: updates that the weights contain
    base_step: int  # global_step of the parent
    job_step: int  # updates of this job
    job_total_steps: int
    rows_consumed: int  # of the flat stream over all epochs
    final: bool  # the job's last update is in it
    parent: CheckpointName | None  # the accepted checkpoint it grew from; None = the base model
    lineage: list[Trained]  # this job's entry included
    base_model: str  # sha256 over the base model's files
    method: str
    skipped_updates: int = 0
    plan: str  # sha256 of all that decides rows, order and arithmetic; another plan cannot be continued exactly
    versions: dict[str, str]  # of the libraries
    threads: int
    exactness: Exactness
    created_at: str
    files: dict[str, FileSeal]


class Assignment(Record):
    """`assignment.json`: all that a worker needs to know; written by the daemon, then never changed."""

    job: str
    file: str
    data_sha256: str
    attempt: int
    workspace: str  # absolute path
    settings: dict[str, Any]  # frozen: config.json with the job's sidecar applied
    tokens: str  # folder of the job's token cache, relative to the workspace
    holdout: str | None  # folder of the holdout's token cache
    holdout_key: str | None
    base_model: str  # folder, relative to the workspace
    base_model_sha256: str
    parent: CheckpointName | None
    parent_lineage: list[Trained]
    base_step: int
    resume: str | None  # this job's checkpoint to go on from
    before: float | None  # validation loss of the parent on the whole holdout, where it is known
    rows: int
    total_steps: int
    lineage_has_optimizer: bool = True


class Control(Record):
    """`control.json`: what the daemon wants of the worker at the next step."""

    action: Literal["pause", "stop", "drop"]  # drop: end without saving
    reason: str


class Outcome(Record):
    """`outcome.json`: how the attempt ended, in the worker's own words; written last."""

    kind: str  # done, paused, stopped, bad_data, bad_config, out_of_memory, not_finite, gpu, disk_full, bug
    code: int
    message: str
    remedy: str | None = None
    checkpoint: str | None = None  # the last one saved
    job_step: int
    at: str


class ExitInfo(Record):
    """`exit.json`: how the process ended, as its parent, the fork server, saw it."""

    pid: int
    code: int | None  # exit status; None where a signal ended it
    signal: int | None
    at: str


class Evaluation(Record):
    """`evaluation.json`: what the worker measured on the holdout."""

    holdout_key: str | None
    rows: int
    before: float | None  # the parent's mean loss a trained token
    after: float | None  # the same of the final checkpoint; None until then
    checkpoint: str | None = None


class Verdict(Record):
    """`verdict.json`: what the gate said of a final checkpoint."""

    passed: bool
    attempt: int  # the verdict counts as long as this is the job's newest attempt
    mode: str
    reason: str
    checkpoint: str
    holdout_key: str | None
    validation_loss: float | None
    accepted_loss: float | None  # of the accepted model, on the same holdout
    best_loss: float | None  # of the best accepted model, on the same holdout
    at: str


class LedgerLine(Record):
    """One line of `runs/ledger.jsonl`: a job that ended."""

    job: str
    file: str
    sha256: str | None
    rows: int
    steps: int
    outcome: str  # completed, failed, rejected, skipped
    reason: str | None
    checkpoint: str | None
    version: str | None = None
    validation_loss: float | None
    holdout_key: str | None
    at: str


class Wish(Record):
    """`status/wishes/<id>.json`: something a person asks of the daemon."""

    id: str
    verb: str
    job: str | None = None  # the job it is meant for; it never hits another
    options: dict[str, Any] = {}
    made_at: str
    expires_at: str


class Answer(Record):
    """`status/wishes/<id>.answer.json`: what was done."""

    id: str
    done: bool
    message: str
    remedy: str | None = None
    exit: int = 0  # exit code of the command
    facts: dict[str, Any] = {}
    at: str


class Desired(Record):
    """`status/desired.json`: what was wished for; survives restarts and reboots."""

    paused: bool = False
    reason: str | None = None  # user, config, disk, …
    stop: Literal["after_file", "now"] | None = None
    skip: str | None = None  # the job that is to be skipped


class Sidecar(BaseModel):
    """`x.yaml` beside `x.jsonl`: settings for this file only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    priority: Priority = "normal"
    label: str | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    again: bool = False
