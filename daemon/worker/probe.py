"""Can this machine load the model? `python -P -m daemon.worker.probe [FOLDER]` tries it and prints JSON.

Without FOLDER only torch is looked at. What does not work is in the key `error`, in words.
"""

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def look_at_torch() -> dict[str, Any]:
    """The version, and the devices that this build of torch can use."""
    usable = torch.cuda.is_available()
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if usable else []
    return {"torch": torch.__version__, "cuda": usable, "devices": names}


def load(folder: str) -> dict[str, Any]:
    """Load configuration, tokenizer and weights as training does, on the CPU."""
    started = time.monotonic()
    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {
        "architecture": type(model).__name__,
        "model_type": config.model_type,
        "parameters": model.num_parameters(),
        "tokens": len(tokenizer),
        "chat_template": bool(tokenizer.chat_template),
        "seconds": round(time.monotonic() - started, 2),
    }


def probe(folder: str | None) -> dict[str, Any]:
    """What was found; a model that does not load is an answer, not a failure of the probe."""
    found = look_at_torch()
    if folder is None:
        return found
    try:
        return {**found, "model": load(folder)}
    except Exception as error:  # whatever a library makes of a broken folder is what the user needs to read
        return {**found, "error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"}


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(json.dumps(probe(sys.argv[1] if len(sys.argv) > 1 else None)))
