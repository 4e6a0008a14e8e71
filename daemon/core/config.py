"""Settings of a workspace: loaded from config.json, refused in plain words, understood under their usual aliases."""

import difflib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daemon.core import files
from daemon.core.arguments import ALIASES, OWNED, training_argument_names
from daemon.core.errors import BadConfig
from daemon.core.paths import ENV_BASE_DIR
from daemon.core.sections import Gate, Lora, Positive, Strict, check_gate

ENV_PREFIX = "TRAINING_"
Auto = Literal["auto"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]
Percent = Annotated[float, Field(ge=0, le=100)]

# The columns of the formats that rows may have, as column_map may name them.
COLUMNS = (
    *("messages", "conversations", "tools", "instruction", "input", "output", "system", "history"),
    *("prompt", "completion", "response", "text", "chosen", "rejected"),
)


class Settings(BaseModel):
    """config.json. Every field is described in docs/reference/config.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_name: str
    base_model: str  # a folder, relative to the workspace
    training_method: Literal["full", "lora", "qlora"] = "full"
    lora: Lora = Lora()  # also of qlora, upon weights of four bits
    preset: Literal["auto"] | None = None  # auto: what is not set here and suits the number of rows; see models/presets
    max_length: Positive = 4096  # tokens a row
    enable_thinking: bool | None = None  # handed to the chat template; None = as the template does by itself
    excess_length: Literal["drop", "truncate", "reject"] = "drop"  # of longer rows: left out, cut, or counted as bad
    per_device_train_batch_size: Positive | Auto = "auto"  # rows a micro-batch
    gradient_accumulation_steps: Positive | Auto = "auto"  # micro-batches an update
    effective_batch_size: Positive | None = None  # rows an update; None = 16, or the product of the two above
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    lr_scheduler_type: str = "constant_with_warmup"
    lr_schedule_scope: Literal["lineage", "job"] = "lineage"
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    num_train_epochs: Positive = 1
    attn_implementation: Attention = "auto"  # auto: flash where it is installed, else as the model has it
    packing: bool = True  # several rows in one sequence, inside an update
    logging_steps: Positive = 10
    eval_steps: Positive = 200
    eval_examples: Annotated[int, Field(ge=0)] = 4
    early_stopping_patience: Positive | None = None  # evaluations in a row without a better loss on the holdout
    max_watching_percent: Percent = 5  # of the training's time; evaluations come less often where they would take more
    save_steps: Positive = 100
    save_min_seconds: Annotated[float, Field(ge=0)] = 300
    save_total_limit: Positive = 3
    generation_timeout_seconds: Annotated[float, Field(gt=0)] = 60
    max_new_tokens: Positive = 2048
    seed: int = 42
    deterministic: bool | Auto = "auto"
    poll_interval: Annotated[float, Field(gt=0)] = 30  # seconds; the net under the file events
    settle_seconds: Annotated[float, Field(ge=0)] = 2
    max_row_bytes: Positive = 8 * 2**20
    max_unpacked_bytes: Positive = 64 * 2**30  # of a packed file
    column_map: dict[str, str] = {}  # our column: the file's
    max_bad_row_percent: Percent = 5
    warn_truncation_percent: Percent = 5
    block_truncation_percent: Percent = 20
    min_trained_percent: Percent = 0.1  # of the tokens of conversations; outside of these bounds the masks are wrong
    max_trained_percent: Percent = 99
    gate: Gate = Gate()
    training_args: dict[str, Any] = {}  # any other TrainingArguments, by their own names

    @property
    def update_rows(self) -> int:
        """Rows an update."""
        if isinstance(self.per_device_train_batch_size, int) and isinstance(self.gradient_accumulation_steps, int):
            return self.per_device_train_batch_size * self.gradient_accumulation_steps
        return self.effective_batch_size or 16

    @property
    def micro_batch_rows(self) -> int:
        """Rows a micro-batch."""
        if isinstance(self.per_device_train_batch_size, int):
            return min(self.per_device_train_batch_size, self.update_rows)
        if isinstance(self.gradient_accumulation_steps, int):
            return -(-self.update_rows // self.gradient_accumulation_steps)
        return min(4, self.update_rows)

    @property
    def adapter(self) -> bool:
        """Whether an adapter is trained, and the base model is not."""
        return self.training_method != "full"

    @property
    def rate(self) -> float:
        """The learning rate after warmup."""
        return self.learning_rate or (2e-4 if self.adapter else 2e-5)


def load(path: Path, environment: dict[str, str] | None = None) -> tuple[Settings, list[str]]:
    """The settings in `path` under TRAINING_… variables, and notices (aliases, risks) to be said aloud.

    Raises BadConfig, naming the key and its remedy.
    """
    try:
        given = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadConfig(
            f"There is no {path}.", "make a workspace with: training_daemon init DIR --model PATH"
        ) from None
    except (ValueError, OSError) as error:
        raise BadConfig(f"{path} cannot be read: {error}.", "correct it, or bring back an earlier copy") from error
    if not isinstance(given, dict):
        raise BadConfig(f"{path} is not a JSON object.", 'it has to look like {"model_name": …, "base_model": …}')
    return parse({**given, **_from_environment(os.environ if environment is None else environment)}, str(path))


def parse(given: dict[str, Any], source: str) -> tuple[Settings, list[str]]:
    """Settings from plain values; `source` names where they came from, for messages."""
    notices: list[str] = []
    values: dict[str, Any] = {}
    arguments = given.get("training_args", {})
    arguments = dict(arguments) if isinstance(arguments, dict) else arguments
    for key, value in given.items():
        if key == "training_args":
            continue
        name = ALIASES.get(key, key)
        if name != key and key not in Settings.model_fields:
            notices.append(f"{source}: {key} is understood as {name}")
        if name in Settings.model_fields:
            values[name] = value
        elif name in OWNED or name in training_argument_names():
            arguments[name] = value
        else:
            raise _unknown(key, source)
    values["training_args"] = arguments
    if isinstance(arguments, dict):
        _check_arguments(arguments, source)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise _in_words(error, source) from None
    _check_together(settings, source)
    check_gate(settings.gate, source)
    check_column_map(settings.column_map, source)
    if not settings.adapter and settings.rate > 1e-4:
        notices.append(f"{source}: learning_rate {settings.rate:g} is high for full fine-tuning (usual: 1e-5 to 5e-5)")
    return settings, notices


def override(settings: Settings, **changes: Any) -> Settings:
    """The settings with some replaced (None = unchanged)."""
    return settings.model_copy(update={k: v for k, v in changes.items() if v is not None})


def _check_arguments(arguments: dict[str, Any], source: str) -> None:
    for name in arguments:
        if name in OWNED:
            raise BadConfig(f"{source}: {name} is decided by the daemon: {OWNED[name]}.", f"remove {name}")
        if name in Settings.model_fields:
            raise BadConfig(f"{source}: {name} stands inside training_args.", f"move {name} to the top level")
        if name not in training_argument_names():
            raise _unknown(name, f"{source}: training_args")


def _check_together(settings: Settings, source: str) -> None:
    asked = settings.effective_batch_size
    if asked and asked != settings.update_rows:
        raise BadConfig(
            f"{source}: effective_batch_size {asked} is not per_device_train_batch_size × gradient_accumulation_steps "
            f"({settings.update_rows}).",
            'set one of the three to "auto" or remove it',
        )
    endless = ("constant", "constant_with_warmup", "inverse_sqrt")
    if settings.lr_schedule_scope == "lineage" and settings.lr_scheduler_type not in endless:
        raise BadConfig(
            f"{source}: lr_scheduler_type {settings.lr_scheduler_type} needs an end, and a lineage has none.",
            f"use one of {', '.join(endless)}, or set lr_schedule_scope to job",
        )


def check_column_map(column_map: dict[str, str], source: str) -> None:
    """Refuse a column that no format has."""
    for name in column_map:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"write our column first: one of {', '.join(COLUMNS)}"
            raise BadConfig(f"{source}: column_map names the column {name}, which no format has.", remedy)


def change(path: Path, name: str, value: Any) -> None:
    """Set one key of a config.json, under the name that it has there. Raises BadConfig where the result is refused."""
    given = files.read_json(path) or {}
    key = next((k for k in given if ALIASES.get(k, k) == name), name)
    changed = {**given, key: value}
    parse(changed, str(path))
    files.write_json(path, changed)


def _unknown(key: str, source: str) -> BadConfig:
    known = [*Settings.model_fields, *ALIASES, *training_argument_names()]
    near = difflib.get_close_matches(key, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else "remove it; docs/reference/config.md lists the known keys"
    return BadConfig(f"{source}: unknown key {key}.", remedy)


def _in_words(error: ValidationError, source: str) -> BadConfig:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        parents: dict[str, type[Strict]] = {"lora": Lora, "gate": Gate}
        parent = parents[str(first["loc"][0])]
        near = difflib.get_close_matches(str(first["loc"][-1]), parent.model_fields, n=1)
        return BadConfig(f"{source}: unknown key {where}.", f"did you mean {near[0]}?" if near else "remove it")
    if first["type"] == "missing":
        return BadConfig(f"{source}: {where} is missing.", f"add {where}; docs/reference/config.md describes it")
    return BadConfig(f"{source}: {where} is {first['input']!r}: {first['msg'].lower()}.", f"correct {where}")


def _from_environment(environment: Any) -> dict[str, Any]:
    """TRAINING_LEARNING_RATE=1e-4 sets learning_rate, and so on for every key of the top level."""
    values: dict[str, Any] = {}
    for name, text in environment.items():
        key = name.removeprefix(ENV_PREFIX).lower()
        if name.startswith(ENV_PREFIX) and name != ENV_BASE_DIR and key in Settings.model_fields:
            try:
                values[key] = json.loads(text)
            except ValueError:
                values[key] = text
    return values
