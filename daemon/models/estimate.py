"""What training a model will need and what this machine has, and the settings that follow from the two."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from daemon.core.config import Settings
from daemon.core.sections import Lora
from daemon.models import weights

FULL_BYTES = 16  # a parameter: weight, gradient and two moments of Adam, each float32
SAVED_BYTES = 12  # a parameter in a checkpoint: weight and two moments
USABLE = 0.8  # of the machine's memory: the rest is the system's, and the room for what a guess misses
USUAL_ROW_TOKENS = 1024  # what a micro-batch is sized for; few rows are longer
UPDATE_ROWS = 16
OWN_MAX_LENGTH = 4096
NOT_ADAPTED = ("embed", "lm_head", "wte", "wpe")
Method = Literal["full", "lora"]


@dataclass(frozen=True)
class Machine:
    """The memory that training can use."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes; guesses are of the right order, not exact."""

    parameters: int
    adapter_parameters: int
    full_bytes: int
    lora_bytes: int
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
    tensors, config, found = weights.shapes(folder), json.loads((folder / "config.json").read_text()), on or machine()
    parameters, adapter = weights.count(tensors), _adapter(tensors, Lora().r)
    fixed: dict[Method, int] = {
        "full": FULL_BYTES * parameters,
        "lora": 4 * parameters + FULL_BYTES * adapter,
    }
    longest = min(OWN_MAX_LENGTH, _number(config, "max_position_embeddings", OWN_MAX_LENGTH))
    row = activations(config, min(longest, USUAL_ROW_TOKENS))
    usable = int(found.memory_bytes * USABLE)
    chosen, reason = _choose(method, {m: size + row for m, size in fixed.items()}, usable, found)
    rows = next((n for n in (8, 4, 2) if fixed[chosen] + n * row <= usable), 1)
    saved = SAVED_BYTES * (parameters if chosen == "full" else adapter)
    defaults = Settings(model_name="", base_model="", training_method=chosen)
    return Estimate(
        parameters=parameters,
        adapter_parameters=adapter,
        full_bytes=fixed["full"] + row,
        lora_bytes=fixed["lora"] + row,
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
        found = [Machine(pynvml.nvmlDeviceGetName(h), int(pynvml.nvmlDeviceGetMemoryInfo(h).total)) for h in handles]
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
    fits = "fits" if need["lora"] <= usable else "is the least there is, and may not fit"
    return "lora", (
        f"full training needs about {readable(need['full'])}, more than {place}; "
        f"LoRA with about {readable(need['lora'])} {fits}"
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
