"""Methods of training, and what each needs here."""

import importlib.util

from daemon.core.errors import BadConfig

QUANTISING = "bitsandbytes"


def can_quantise() -> bool:
    """Whether weights of four bits can be trained upon."""
    return importlib.util.find_spec(QUANTISING) is not None


def check(method: str) -> None:
    """Raises BadConfig where a method cannot be had here."""
    if method == "qlora" and not can_quantise():
        raise BadConfig(
            f"training_method qlora needs {QUANTISING}, which is not installed.",
            f"pip install {QUANTISING}; or set training_method to lora",
        )
