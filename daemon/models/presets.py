"""Settings that follow from the data and the machine, where nobody has set them: `preset: auto`, and `auto` rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.core.config import Settings
from daemon.core.errors import DaemonError
from daemon.models import estimate


@dataclass(frozen=True)
class Preset:
    """What suits files of up to so many rows."""

    rows: float
    settings: dict[str, int]


# Little data is seen more often, in more and smaller updates, and looked at more often.
PRESETS = (
    Preset(1_000, {"num_train_epochs": 3, "effective_batch_size": 8, "logging_steps": 5, "eval_steps": 50}),
    Preset(20_000, {"num_train_epochs": 2, "effective_batch_size": 16, "logging_steps": 10, "eval_steps": 200}),
    Preset(float("inf"), {"num_train_epochs": 1, "effective_batch_size": 32, "logging_steps": 10, "eval_steps": 500}),
)


def chosen(settings: Settings, model: Path, *, rows: int, longest_row: int) -> dict[str, Any]:
    """The keys of config.json that are left to the daemon, and what they are for a file of such rows.

    `longest_row` is in tokens. What is set anywhere (config.json, variables, sidecar) is not among them.
    """
    found: dict[str, Any] = {}
    both = {settings.per_device_train_batch_size, settings.gradient_accumulation_steps}
    if settings.preset == "auto":
        fitting = next(preset for preset in PRESETS if rows <= preset.rows)
        taken = settings.model_fields_set | (set() if "auto" in both else {"effective_batch_size"})
        found |= {key: value for key, value in fitting.settings.items() if key not in taken}
    if both == {"auto"}:
        update_rows = settings.model_copy(update=found).update_rows
        fits = _fitting_rows(settings, model, longest_row, update_rows)
        if fits is not None:
            found["per_device_train_batch_size"] = fits
    return found


def _fitting_rows(settings: Settings, model: Path, longest_row: int, update_rows: int) -> int | None:
    """None where the model's files do not say how large it is; preflight and training name what is wrong with them."""
    try:
        return estimate.fitting_rows(model, settings.training_method, longest_row, update_rows)
    except (DaemonError, OSError, ValueError):
        return None
