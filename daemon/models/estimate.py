"""What training a model will need and what this machine has, and the settings that follow from the two."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from daemon.core.config import Settings
from daemon.core.sections import Lora
from daemon.models import methods, weights

FULL_BYTES = 16  # a parameter: weight, gradient and two moments of Adam, each float32
FOUR_BITS = 0.6  # bytes a parameter, constants of the quantisation and what is not quantised included
SAVED_BYTES = 12  # a parameter in a checkpoint: weight and two moments
USABLE = 0.8  # of the machine's memory: the rest is the system's, and the room for what a guess misses
USUAL_ROW_TOKENS = 1024  # what a micro-batch is sized for; few rows are longer
UPDATE_ROWS = 16
OWN_MAX_LENGTH = 4096
NOT_ADAPTED = ("embed", "lm_head", "wte", "wpe")
CPU_ROWS = 4  # a micro-batch: more of them keep a processor no busier
GPU_ROWS = 64
Method = Literal["full", "lora", "qlora"]


@dataclass(frozen=True)
class Machine:
    """The memory that training can use."""

    name: str
    memory_bytes: int
    gpu: bool = False


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes; guesses are of the right order, not exact."""

    parameters: int
    adapter_parameters: int
    full_bytes: int
    lora_bytes: int
    qlora_bytes: int
    machine: str
    machine_bytes: int
    method: Method
    reason: str
    checkpoint_bytes: int
    checkpoints_kept: int
    written_bytes_a_day: int  # while it trains without a pause, at the longest save interval
    max_length: int
    micro_batch_rows: int
    accumulation: int
    learning_rate: float

    @property
    def needed_bytes(self) -> int:
        """With the method that was chosen."""
        return {"full": self.full_bytes, "lora": self.lora_bytes, "qlora": self.qlora_bytes}[self.method]

    def settings(self) -> dict[str, Any]:
        """What was chosen, as keys of config.json."""
        return {
            "training_method": self.method,
            "max_length": self.max_length,
            "per_device_train_batch_size": self.micro_batch_rows,
            "gradient_accumulation_steps": self.accumulation,
            "learning_rate": self.learning_rate,
            "num_train_epochs": 1,
        }

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def estimate(folder: Path, method: Method | None = None, on: Machine | None = None) -> Estimate:
    """Choose the method, unless it is given, and the batch, for the model in `folder` on this machine or another."""
    tensors, config, found = weights.shapes(folder), _config(folder), on or machine()
    parameters, adapter = weights.count(tensors), _adapter(tensors, Lora().r)
    fixed = _fixed(parameters, adapter)
    longest = min(OWN_MAX_LENGTH, _number(config, "max_position_embeddings", OWN_MAX_LENGTH))
    row = activations(config, min(longest, USUAL_ROW_TOKENS))
    usable = int(found.memory_bytes * USABLE)
    chosen, reason = _choose(method, {m: size + row for m, size in fixed.items()}, usable, found)
    rows = _most_rows(usable - fixed[chosen], row, at_most=8)
    saved = SAVED_BYTES * (parameters if chosen == "full" else adapter)
    defaults = Settings(model_name="", base_model="", training_method=chosen)
    return Estimate(
        parameters=parameters,
        adapter_parameters=adapter,
        full_bytes=fixed["full"] + row,
        lora_bytes=fixed["lora"] + row,
        qlora_bytes=fixed["qlora"] + row,
        machine=found.name,
        machine_bytes=found.memory_bytes,
        method=chosen,
        reason=reason,
        checkpoint_bytes=saved,
        checkpoints_kept=defaults.save_total_limit,
        written_bytes_a_day=int(saved * 86400 / defaults.save_min_seconds),
        max_length=longest,
        micro_batch_rows=rows,
        accumulation=UPDATE_ROWS // rows,
        learning_rate=defaults.rate,
    )


def fitting_rows(folder: Path, method: Method, tokens: int, at_most: int, on: Machine | None = None) -> int:
    """How many rows of `tokens` a micro-batch may have, for the model in `folder`: a power of two, or `at_most`."""
    tensors, found = weights.shapes(folder), on or machine()
    fixed = _fixed(weights.count(tensors), _adapter(tensors, Lora().r))[method]
    free = int(found.memory_bytes * USABLE) - fixed
    return _most_rows(free, activations(_config(folder), tokens), min(at_most, GPU_ROWS if found.gpu else CPU_ROWS))


def _fixed(parameters: int, adapter: int) -> dict[Method, int]:
    """Bytes that are taken however short the rows are."""
    return {
        "full": FULL_BYTES * parameters,
        "lora": 4 * parameters + FULL_BYTES * adapter,
        "qlora": int(FOUR_BITS * parameters) + FULL_BYTES * adapter,
    }


def _most_rows(free: int, row: int, at_most: int) -> int:
    rows = 1
    while rows < at_most and min(2 * rows, at_most) * row <= free:
        rows = min(2 * rows, at_most)
    return rows


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def activations(config: dict[str, Any], tokens: int) -> int:
    """A guess at the bytes that one row's forward pass keeps for its backward pass, float32, nothing recomputed."""
    hidden = _number(config, "hidden_size", 1024)
    inner = _number(config, "intermediate_size", 4 * hidden)
    layers = _number(config, "num_hidden_layers", 24)
    heads = _number(config, "num_attention_heads", 16)
    vocabulary = _number(config, "vocab_size", 50_000)
    # Norms, projections and residuals; the inner layer three times; attention weights; logits and their gradient.
    a_token = layers * (12 * hidden + 3 * inner + heads * tokens) + 3 * vocabulary
    return 4 * tokens * a_token


def machine() -> Machine:
    """The GPU with the most memory, else the main memory."""
    return _largest_gpu() or Machine("main memory, no GPU", psutil.virtual_memory().total)


def _largest_gpu() -> Machine | None:
    import pynvml  # only here and in status is a driver asked for

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        found = [
            Machine(pynvml.nvmlDeviceGetName(h), int(pynvml.nvmlDeviceGetMemoryInfo(h).total), True) for h in handles
        ]
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    return max(found, key=lambda m: m.memory_bytes, default=None)


def _choose(given: Method | None, need: dict[Method, int], usable: int, found: Machine) -> tuple[Method, str]:
    place = f"{readable(usable)} usable of {readable(found.memory_bytes)} ({found.name})"
    if given is not None:
        fits = "fits into" if need[given] <= usable else "may not fit into"
        return given, f"as asked; about {readable(need[given])} {fits} {place}"
    if need["full"] <= usable:
        return "full", f"all weights learn: about {readable(need['full'])} fits into {place}"
    too_much = f"full training needs about {readable(need['full'])}, more than {place}"
    if need["lora"] <= usable:
        return "lora", f"{too_much}; LoRA with about {readable(need['lora'])} fits"
    if methods.can_quantise():
        fits = "fits" if need["qlora"] <= usable else "is the least there is, and may not fit"
        return "qlora", f"{too_much}, as is LoRA; QLoRA with about {readable(need['qlora'])} {fits}"
    return "lora", (
        f"{too_much}; LoRA with about {readable(need['lora'])} may not fit; "
        f"QLoRA (pip install {methods.QUANTISING}) takes about {readable(need['qlora'])}"
    )


def _adapter(tensors: dict[str, list[int]], rank: int) -> int:
    """Parameters of a LoRA adapter on every linear layer."""
    linear = [s for name, s in tensors.items() if len(s) == 2 and not any(part in name for part in NOT_ADAPTED)]
    return sum(rank * (shape[0] + shape[1]) for shape in linear)


def _number(config: dict[str, Any], key: str, otherwise: int) -> int:
    """A size from config.json, which models of several parts keep one level down."""
    inner = config.get("text_config")
    value = config.get(key, inner.get(key) if isinstance(inner, dict) else None)
    return value if isinstance(value, int) and value > 0 else otherwise


def readable(size: float) -> str:
    """Bytes as people say them: 1.4 MB, 12 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
