"""What an attempt starts from: torch as it has to be, weights, optimizer, generators, position."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from daemon.core import files
from daemon.core.attempts import Assignment, Exactness, Manifest
from daemon.core.config import Settings
from daemon.core.errors import BadConfig
from daemon.core.paths import Workspace
from daemon.models import checkpoints
from daemon.worker import arithmetic, saving
from daemon.worker.batches import Layout
from daemon.worker.evaluate import Examined, seed_everything


@dataclass(frozen=True)
class Start:
    """From where the attempt goes on: weights, optimizer, generators, step."""

    weights: Path | None  # a checkpoint; None = the base model
    first_step: int  # of this job
    optimizer: dict[str, Any] | None
    rng: dict[str, Any] | None  # None at a job's beginning: seeded from the job
    losses: list[float]  # of the updates since the last line of the log
    layout: Layout | None  # of the batches; None = still to be found out
    consumed: bytes  # the rows trained so far in this job, as consumed.bin has them
    skipped_updates: int  # of this job: they were not finite
    skipped_in_a_row: tuple[dict[str, Any], ...] = ()  # the updates that were, at the last
    loss_scale: dict[str, float] | None = None  # of float16
    manifest: Manifest | None = None  # of this job's checkpoint
    examined: Examined = field(default_factory=Examined)

    @property
    def final(self) -> bool:
        """Whether all that the checkpoint lacks is its evaluation."""
        return self.manifest is not None and self.manifest.final


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
    # What is compiled anew for an attempt may add up in another order.
    return "bitwise" if deterministic and not settings.training_args.get("torch_compile") else "statistical"


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
        progress = read_progress(folder)
        consumed = (folder / checkpoints.CONSUMED).read_bytes()
        return Start(
            folder,
            manifest.job_step,
            _optimizer(folder),
            _load(folder / saving.RNG),
            **progress,
            consumed=consumed,
            skipped_updates=manifest.skipped_updates,
            manifest=manifest,
        )
    if assignment.parent:
        folder = workspace.current_model / assignment.parent.checkpoint
        consumed = _kept_rows(assignment, workspace)
        return Start(folder, assignment.first_step, _optimizer(folder), None, [], None, consumed, 0)
    return Start(None, 0, None, None, [], None, b"", 0)


def _kept_rows(assignment: Assignment, workspace: Workspace) -> bytes:
    """The rows of this job that the parent contains already."""
    size = assignment.first_rows * checkpoints.CONSUMED_BYTES
    note = workspace.run(assignment.job).consumed
    rows = note.read_bytes()[:size] if size and note.is_file() else b""
    if len(rows) < size:
        raise BadConfig(
            f"{note} lacks rows that the model contains.",
            "bring it back from a backup, then change config.json; or: training_controller skip",
        )
    return rows


def read_progress(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of the middle of a training: the losses not logged yet, and the batches' layout."""
    progress = files.read_json(folder / saving.PROGRESS) or {}
    return {
        "losses": progress["losses"],
        "layout": Layout(progress["layout"]),
        "skipped_in_a_row": tuple(progress.get("skipped_in_a_row", ())),
        "examined": Examined(**progress.get("examined", {})),
        "loss_scale": progress.get("loss_scale"),
    }


def why_inexact(manifest: Manifest, micro_batch_rows: int, calculated: arithmetic.Arithmetic) -> str | None:
    """What calculates otherwise here than where the checkpoint was made; it may round otherwise."""
    before = {**manifest.versions, "threads": str(manifest.threads)}
    here = {**saving.versions(calculated), "threads": str(torch.get_num_threads())}
    if manifest.micro_batch_rows is not None:
        before["rows a micro-batch"] = str(manifest.micro_batch_rows)
        here["rows a micro-batch"] = str(micro_batch_rows)
    other = [
        f"{name}: {before[name]} before, {here[name]} now"
        for name in here
        if before.get(name, here[name]) != here[name]
    ]
    if other:
        return "; ".join(other)
    return "an attempt before went on inexactly" if manifest.inexact else None


def load_model(base: Path, weights: Path | None, settings: Settings, adapter_seed: int) -> PreTrainedModel:
    """The model in float32 master weights, as a full model or as the base under an adapter that is trained.

    For qlora the base's weights have four bits.
    """
    model = _load_model(base if settings.adapter or weights is None else weights, settings)
    model.config.use_cache = False
    if not settings.adapter:
        return model
    if settings.training_method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        for layer in model.modules():
            # On some processors the first evaluation would lay out the weights anew, and round otherwise from then on.
            layer.support_avx512bf16_for_cpu = False
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


def _load_model(source: Path, settings: Settings) -> PreTrainedModel:
    """Raises BadConfig where an implementation of attention is selected that cannot learn here."""
    chosen = arithmetic.choose(settings)
    given = _quantised(chosen) if settings.training_method == "qlora" else {}
    if chosen.attention is not None:
        try:
            return _load_with(source, {**given, "attn_implementation": chosen.attention})
        except BadConfig:
            if settings.attn_implementation != "auto":
                raise
    return _load_with(source, given)


def _load_with(source: Path, given: dict[str, Any]) -> PreTrainedModel:
    remedy = "set attn_implementation to sdpa or eager in config.json"
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **given)
    except ImportError as error:
        raise BadConfig(f"The model cannot be loaded here: {error}", f"install what it needs, or {remedy}") from error
    except ValueError as error:
        if "attn_implementation" not in given:
            raise
        raise BadConfig(f"The model cannot be loaded so: {error}", remedy) from error
    if model.config._attn_implementation == "flex_attention" and not torch.cuda.is_available():
        # torch has its forward there only, so that trying it without gradients says nothing.
        raise BadConfig("The model selects flex_attention, which cannot learn on a CPU.", remedy)
    return model


def _quantised(chosen: arithmetic.Arithmetic) -> dict[str, Any]:
    """Weights of four bits, as in the QLoRA paper (arXiv 2305.14314): NF4, its constants quantised too."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, chosen.numbers),
    )
    return {"quantization_config": config, "device_map": {"": 0 if torch.cuda.is_available() else "cpu"}}


def _optimizer(folder: Path) -> dict[str, Any] | None:
    path = folder / saving.OPTIMIZER
    return _load(path) if path.is_file() else None


def _load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded
