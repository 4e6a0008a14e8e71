"""What the daemon and a worker tell each other, and the manifests of checkpoints, as frozen records."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from daemon.core import files
from daemon.core.records import Record

# Of the files and signals between daemon and worker: raised where one side would misunderstand the other as it was
# before. What every protocol keeps: the lock with the process and its attempt, SIGTERM (save, end), SIGUSR1 (stacks).
PROTOCOL = 1
SERVER_READY = "ready"  # what the fork server prints, as a line, once it can take an attempt

Exactness = Literal["bitwise", "statistical"]


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
    steps: int  # updates taken for it; a file that was skipped, kept and tried again has an entry for each time
    rows_trained: int | None = None  # each counted as often as it was; None in the manifests of earlier releases
    stream_at: int | None = None  # global_step that names the file's stream of rows


class FileSeal(Record):
    bytes: int
    sha256: str


class RateChange(Record):
    """From this update of the job on, the learning rate is so much of what the settings say."""

    from_step: int  # updates of the job before it
    factor: float


class Manifest(Record):
    """`manifest.json` in a checkpoint, written last: it is whole, and this is what it contains."""

    job: str
    attempt: int
    step: int  # global_step: updates that the weights contain
    base_step: int  # step - job_step: the global_step of the parent, less `first_step`
    job_step: int  # updates of this job
    job_total_steps: int
    first_step: int = 0  # updates of this job that the parent contains already, kept when it was skipped
    rows_consumed: int  # rows trained for this job, each counted as often as it was: the length of consumed.bin
    final: bool  # the job's last update is in it
    parent: CheckpointName | None  # the accepted checkpoint it grew from; None = the base model
    lineage: list[Trained]  # this job's entry included
    base_model: str  # sha256 over the base model's files
    method: str
    skipped_updates: int = 0
    rate_changes: tuple[RateChange, ...] = ()
    micro_batch_rows: int | None = None  # with which it was trained; None in the manifests of earlier releases
    micro_batch_asked: int | None = None  # by the settings; more than that where memory did not suffice
    plan: str  # sha256 of all that decides rows, order and arithmetic; another plan cannot be continued exactly
    versions: dict[str, str]  # of the libraries; and the processors
    threads: int
    exactness: Exactness
    inexact: str | None = None  # why this job is not bit for bit that of an undisturbed training, in words
    created_at: str
    files: dict[str, FileSeal]

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """As of every record; one wrong bit in it is damage too."""
        value = files.read_json(path)
        if value is None:
            return None
        digest = value.pop("digest", None)
        if digest != _digest(value):
            raise ValueError(f"{path} is not as it was written")
        return cls.model_validate(value)

    def save(self, path: Path) -> None:
        value = json.loads(self.model_dump_json())
        files.write_json(path, {**value, "digest": _digest(value)})


def _digest(value: dict[str, Any]) -> str:
    """sha256 of a record's content, whatever its order and white space."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class SuiteGiven(Record):
    """A file of data/benchmarks that a worker is to measure with."""

    name: str
    key: str  # names its content and all that decides its tokens
    folder: str  # of its token cache, relative to the workspace


class Assignment(Record):
    """`assignment.json`: all that a worker needs to know; written by the daemon, then never changed."""

    job: str
    file: str
    data_sha256: str
    attempt: int
    first_attempt: int = 1  # of this beginning at the first row; earlier ones were before a retry
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
    stream_at: int | None = None  # names the stream of rows; None = base_step
    first_step: int = 0  # updates of this job that the parent contains already
    first_rows: int = 0  # the rows of those
    resume: str | None  # this job's checkpoint to go on from
    before: float | None  # validation loss of the parent on the whole holdout, where it is known
    rows: int
    total_steps: int
    lineage_has_optimizer: bool = True
    micro_batch_rows: int | None = None  # fewer than the settings say, where memory did not suffice
    rate_changes: tuple[RateChange, ...] = ()
    left_out: tuple[int, ...] = ()  # lines of the rows that were twice in updates that were not finite
    no_generation_because: str | None = None  # in words
    suites: tuple[SuiteGiven, ...] = ()
    protocol: int = 1  # of the daemon that wrote it


class Control(Record):
    """`control.json`: what the daemon wants of the worker at the next step."""

    action: Literal["pause", "stop", "drop", "keep"]  # drop: end without saving; keep: save, evaluate, end
    reason: str


class Outcome(Record):
    """`outcome.json`: how the attempt ended, in the worker's own words; written last."""

    kind: str  # done, paused, stopped, bad_data, bad_config, out_of_memory, not_finite, gpu, disk_full, bug
    code: int
    message: str
    remedy: str | None = None
    checkpoint: str | None = None  # the last one saved
    job_step: int
    lines: tuple[int, ...] = ()  # of the rows in updates that were not finite, where it ended for them
    at: str


class ExitInfo(Record):
    """`exit.json`: how the process ended, as its parent, the fork server, saw it."""

    pid: int
    code: int | None  # exit status; None where a signal ended it
    signal: int | None
    at: str


class Case(Record):
    """What a judge reads from its standard input: what it is to judge, and all that is known of it."""

    job: str
    file: str
    label: str | None
    workspace: str  # absolute paths here and below
    run: str  # the folder with log.jsonl, config.yaml and attempts/
    checkpoint: str  # the model to be judged: for LoRA, the adapter
    parent: str | None  # the accepted one; None = the base model
    base_model: str
    method: str
    kept: bool  # not at its end: the file was skipped with --keep
    holdout_rows: int
    loss_before: float | None  # of the accepted model, on the whole holdout
    loss_after: float | None  # of the model to be judged
    loss_best: float | None  # the lowest of all accepted so far
    automatic_passed: bool  # what the figures alone would have decided
    automatic_reason: str
    manifest: dict[str, Any]  # of the checkpoint, without its files


class Evaluation(Record):
    """`evaluation.json`: what the worker measured on the holdout."""

    holdout_key: str | None
    rows: int
    before: float | None  # the parent's mean loss a trained token
    after: float | None  # the same of the final checkpoint; None until then
    checkpoint: str | None = None


class SuiteFigures(Record):
    """What a suite says of a model; what could not be measured is None, with the reason."""

    key: str  # of the suite: figures under different keys cannot be compared
    rows: int
    left_out_rows: int = 0  # bad, or longer than max_length
    questions: int  # rows that have an expected answer
    loss: float | None = None  # mean, a token of the expected answers or of the texts
    perplexity: float | None = None
    exact_match: float | None = None  # share of the questions that were answered word for word
    reason: str | None = None


class Measured(Record):
    """`measured.json`: what the suites of data/benchmarks say of the model that an attempt has trained."""

    checkpoint: str
    suites: dict[str, SuiteFigures]
    base: dict[str, SuiteFigures]  # of the base model
    tokens_per_second: dict[int, float]  # rows that have at most so many tokens: read, without gradients
    generated_tokens_per_second: float | None
    seconds: float  # that it took
    allowed_seconds: float


class Baseline(Record):
    """One line of `runs/baselines.jsonl`: a suite, and what it says of the base model; measured once."""

    base_model_sha256: str
    suite: str
    figures: SuiteFigures
    at: str
