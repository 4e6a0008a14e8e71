"""The formats of jobs, settings and commands as frozen records; the states of a job and the table of allowed moves."""

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from daemon.core import files


def now() -> str:
    """UTC, ISO 8601, milliseconds: `2026-01-31T12:00:00.000Z`."""
    return in_utc(datetime.now(UTC))


def in_utc(time: datetime) -> str:
    """A time as records write it; one without a zone is local."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


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
    State.COMPLETED: frozenset(WAITING_STATES),  # where the model that contained it is damaged
    State.FAILED: frozenset(WAITING_STATES),
    State.REJECTED: frozenset(WAITING_STATES),
    State.SKIPPED: frozenset(WAITING_STATES),
}

Priority = Literal["high", "normal", "low"]


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
    column_map: dict[str, str] | None = None  # of the sidecar
    after: str | None = None  # starts once this job is completed: its id, or a name that no job had so far
    not_before: str | None = None  # starts no sooner
    again: bool = False  # train it although the same content was trained before
    taken_in_at: str
    moved_at: str | None = None  # when it came into its present state
    reason: str | None = None  # why it lies in failed, rejected or skipped; in words
    remedy: str | None = None


class RejectedRow(Record):
    """One line of `rejected.jsonl`."""

    line: int  # of a .json file the element, of a .parquet file the row; from 1
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
    preference_rows: int = 0  # good in themselves, but not to be trained yet
    trained_before_rows: int | None = None  # different rows that completed files had already
    length_histogram: dict[int, int] = {}  # rows that have at most so many tokens, and more than half as many
    trained_token_percent: float | None = None
    think_tag_percent: float | None = None  # rows whose answers reason
    fitting_max_length: int | None = None  # where rows are too long: with this few enough would be
    numbered: str = "line"  # what rejected.jsonl counts: line, element, row
    estimated_seconds: float | None = None  # at the speed of the newest training here
    estimated_memory_bytes: int | None = None
    checkpoint_bytes: int | None = None
    disk_free_bytes: int | None = None
    estimated_steps: int  # updates, all epochs
    cache_key: str | None  # names tokenizer, template and options; None where there is no cache
    chosen: dict[str, int] = {}  # settings that are left to the daemon: what they are for this file
    reason: str | None  # why it may not be trained, in words
    remedy: str | None
    warnings: list[str] = []
    checked_at: str
    seconds: float

    def left_out(self) -> str:
        """The rows that are not trained as they stand in the file, in words; empty where there are none."""
        parts = ((self.bad_rows, "bad"), (self.too_long_rows, "too long"), (self.holdout_rows, "in the holdout"))
        said = ", ".join(f"{count} {what}" for count, what in parts if count)
        return f" ({said}; see rejected.jsonl)" if said else ""


class Verdict(Record):
    """`verdict.json`: what the gate said of a final checkpoint, or of what a skipped job had learned."""

    passed: bool
    attempt: int  # the verdict counts as long as this is the job's newest attempt
    mode: str
    reason: str
    checkpoint: str
    holdout_key: str | None
    validation_loss: float | None
    accepted_loss: float | None  # of the accepted model, on the same holdout
    best_loss: float | None  # of the best accepted model, on the same holdout
    kept: bool = False  # not final: the job was skipped and what it had learned was to be kept
    at: str


class Question(Record):
    """`question.json`: what the gate asks a person about a checkpoint; until then the job stays in processing."""

    automatic: Verdict  # what the figures alone would have decided
    undecided: str | None = None  # why the judge that was asked before did not decide
    answer: bool | None = None  # approved, rejected; None = not answered yet
    words: str | None = None  # why, as the person said
    wish: str | None = None  # the wish that gave the answer
    at: str


class LedgerLine(Record):
    """One line of `runs/ledger.jsonl`: a job that ended."""

    job: str
    file: str
    sha256: str | None
    rows: int
    steps: int
    outcome: str  # completed, failed, rejected, skipped, undone
    reason: str | None
    checkpoint: str | None  # in which the model contains the job, or the part of it that was kept
    version: str | None = None
    bad_rows: int | None = None  # left out; None in the lines of earlier releases
    too_long_rows: int | None = None
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
    keep: bool = False  # what it has learned is to pass the gate first


class Sidecar(BaseModel):
    """`x.yaml` beside `x.jsonl`: settings for this file only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    priority: Priority = "normal"
    label: str | None = None
    epochs: Annotated[int, Field(gt=0, le=1_000_000)] | None = None
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    after: str | None = None  # a job: its id, a unique beginning of it, or its file's name
    not_before: str | None = None  # ISO 8601; without a zone it is local time
    column_map: dict[str, str] | None = None
    again: bool = False

    @field_validator("label", "after")
    @classmethod
    def _one_line(cls, value: str | None) -> str | None:
        """They are shown in terminals, which some characters steer."""
        if value is not None and not value.isprintable():
            raise ValueError("write it in one line of printable characters")
        return value

    @field_validator("not_before", mode="before")
    @classmethod
    def _read_time(cls, value: Any) -> str | None:
        """As records write times; YAML makes dates of some values by itself."""
        if value is None:
            return None
        try:
            return in_utc(datetime.fromisoformat(str(value)))
        except OverflowError:  # at the edge of the calendar, moved over it by the zone
            raise ValueError("there is no such time") from None
