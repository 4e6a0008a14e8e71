"""One job, top to bottom: model, data, Trainer, final evaluation."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
)

from daemon.core import files
from daemon.core.attempts import Assignment, Evaluation, Exactness
from daemon.core.config import Settings
from daemon.core.errors import BadConfig, WorkerExit
from daemon.core.heartbeat import Heartbeat, Phase
from daemon.core.paths import Attempt, Workspace
from daemon.models import checkpoints
from daemon.worker import saving
from daemon.worker.batches import Stream, TokenRows, Updates, derive_seed
from daemon.worker.callbacks import Log, Orders, Step
from daemon.worker.evaluate import Holdout, pad_id, seed_everything
from daemon.worker.saving import Saver
from daemon.worker.trainer import JobTrainer, training_arguments


@dataclass(frozen=True)
class Result:
    """How an attempt ended by itself."""

    code: WorkerExit
    message: str
    checkpoint: Path | None
    job_step: int


@dataclass(frozen=True)
class Start:
    """From where the attempt goes on: weights, optimizer, generators, step."""

    weights: Path | None  # a checkpoint; None = the base model
    first_step: int  # of this job
    optimizer: dict[str, Any] | None
    rng: dict[str, Any] | None  # None at a job's beginning: seeded from the job
    losses: list[float]  # of the updates since the last line of the log


def train(assignment: Assignment, attempt: Attempt, heartbeat: Heartbeat, orders: Orders) -> Result:
    """Train what the assignment says, from where it says, until the end or an order."""
    workspace = Workspace(Path(assignment.workspace))
    settings = Settings.model_validate(assignment.settings)
    exactness = prepare_torch(settings)
    if order := orders.pending():
        return _interrupted_early(order.action, assignment, workspace)
    start = find_start(assignment, workspace)
    name = f"{assignment.data_sha256} at {assignment.base_step}"  # of the stream
    base = workspace.root / assignment.base_model
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load_model(base, start.weights, settings, derive_seed(settings.seed, name, "adapter"))
    saver = Saver(workspace, assignment, settings, heartbeat, exactness)
    saver.start_at(start.first_step)
    holdout = None
    if assignment.holdout:
        holdout = Holdout(TokenRows(workspace.root / assignment.holdout), settings, tokenizer, heartbeat)
    rows = TokenRows(workspace.root / assignment.tokens)
    stream = Stream(len(rows), settings.num_train_epochs, settings.update_rows, settings.seed, name)
    assert stream.total_steps == assignment.total_steps, "daemon and worker count the updates alike"
    log = Log(
        workspace.run(assignment.job), attempt.number, assignment.base_step, assignment.base_step + stream.total_steps
    )
    step = Step(
        log=log,
        orders=orders,
        saver=saver,
        holdout=holdout,
        attempt=attempt,
        evaluation=Evaluation(holdout_key=assignment.holdout_key, rows=0, before=assignment.before, after=None),
        heartbeat=heartbeat,
        rng=start.rng,
        seed=derive_seed(settings.seed, name, "training"),
        losses=start.losses,
    )
    trainer = build_trainer(model, tokenizer, rows, stream, settings, assignment, start, heartbeat, attempt, step)
    log.write("event", start.first_step, 0.0, event="started", exactness=exactness, threads=torch.get_num_threads())
    if start.first_step < stream.total_steps:
        heartbeat.beat(Phase.TRAIN)
        trainer.train()
    else:  # a final checkpoint that lacks its evaluation
        trainer.accelerator.prepare_model(trainer.language_model, evaluation_mode=True)
        trainer.state.global_step = start.first_step
    return finish(trainer, step, saver, holdout, attempt, workspace, assignment)


def finish(
    trainer: JobTrainer,
    step: Step,
    saver: Saver,
    holdout: Holdout | None,
    attempt: Attempt,
    workspace: Workspace,
    assignment: Assignment,
) -> Result:
    """The final evaluation, or the record of what interrupted the training."""
    job_step = trainer.state.global_step
    folder = saver.saved or (workspace.root / assignment.resume if assignment.resume else None)
    if order := step.interrupted:
        code = WorkerExit.PAUSED if order.action == "pause" else WorkerExit.STOPPED
        saved = f"saved {folder.name}" if folder else "saved nothing"
        return Result(code, f"{saved}; {order.action} was asked for: {order.reason}", folder, job_step)
    assert folder is not None, "the last step saves"
    evaluation = step.evaluation.model_copy(update={"checkpoint": folder.name})
    if holdout:
        rows = holdout.rows_for_gate()
        after = holdout.loss(trainer.language_model, rows)
        step.evaluate(job_step, rows)
        evaluation = evaluation.model_copy(update={"after": after, "rows": rows})
    evaluation.save(attempt.evaluation)
    return Result(WorkerExit.DONE, f"trained to the end; {folder.name} is final", folder, job_step)


def prepare_torch(settings: Settings) -> Exactness:
    """Threads and determinism; returns which exactness holds: bitwise or statistical."""
    cuda = torch.cuda.is_available()
    deterministic = not cuda if settings.deterministic == "auto" else settings.deterministic
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(cores if cuda else max(1, cores - 1))
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time, guards only against our own bugs
    return "bitwise" if deterministic else "statistical"


def find_start(assignment: Assignment, workspace: Workspace) -> Start:
    """Read where to go on: this job's checkpoint, else the accepted model, else the base model."""
    if assignment.resume:
        folder = workspace.root / assignment.resume
        manifest = checkpoints.read(folder)
        if manifest is None or manifest.plan != saving.plan_digest(assignment):
            raise BadConfig(
                f"{folder.name} was made under other settings than this job has now.",
                f"bring back the settings of runs/{assignment.job}/config.yaml, or skip and retry the job",
            )
        progress = files.read_json(folder / saving.PROGRESS) or {}
        return Start(folder, manifest.job_step, _optimizer(folder), _load(folder / saving.RNG), progress["losses"])
    if assignment.parent:
        folder = workspace.current_model / assignment.parent.checkpoint
        return Start(folder, 0, _optimizer(folder), None, [])
    return Start(None, 0, None, None, [])


def load_model(base: Path, weights: Path | None, settings: Settings, adapter_seed: int) -> PreTrainedModel:
    """The model in float32 master weights, as a full model or as the base under an adapter that is trained."""
    lora = settings.training_method == "lora"
    source = base if lora or weights is None else weights
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.config.use_cache = False
    if not lora:
        return model
    if weights is not None:
        return PeftModel.from_pretrained(model, weights, is_trainable=True)  # type: ignore[return-value]
    seed_everything(adapter_seed)
    config = LoraConfig(
        r=settings.lora.r,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules=settings.lora.target_modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)  # type: ignore[return-value]


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: TokenRows,
    stream: Stream,
    settings: Settings,
    assignment: Assignment,
    start: Start,
    heartbeat: Heartbeat,
    attempt: Attempt,
    step: Step,
) -> JobTrainer:
    try:
        arguments = training_arguments(settings, stream.total_steps, str(attempt.root))
    except (TypeError, ValueError, ImportError) as error:
        raise BadConfig(f"training_args are not accepted: {error}.", "correct training_args in config.json") from error
    trainer = JobTrainer(
        model=model,
        args=arguments,
        tokenizer=tokenizer,
        callbacks=[step],
        updates=Updates(rows, stream, settings.micro_batch_rows, pad_id(tokenizer)),
        assignment=assignment,
        settings=settings,
        first_step=start.first_step,
        optimizer_state=start.optimizer,
        heartbeat=heartbeat,
    )
    trainer.remove_callback(PrinterCallback)
    step.trainer = trainer
    return trainer


def _interrupted_early(action: str, assignment: Assignment, workspace: Workspace) -> Result:
    code = WorkerExit.PAUSED if action == "pause" else WorkerExit.STOPPED
    if not assignment.resume:
        return Result(code, "ended before its first step; there was nothing to save", None, 0)
    folder = workspace.root / assignment.resume
    manifest = checkpoints.read(folder)
    return Result(
        code, f"ended before its next step; {folder.name} holds all", folder, manifest.job_step if manifest else 0
    )


def _optimizer(folder: Path) -> dict[str, Any] | None:
    path = folder / saving.OPTIMIZER
    return _load(path) if path.is_file() else None


def _load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded
