"""On a worker's PYTHONPATH: a model and a machine with faults, as the variable TROUBLE asks, in JSON."""

import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
from types import ModuleType
from typing import Any

ASKED: dict[str, Any] = json.loads(os.environ.get("TROUBLE", "{}"))
now = {"update": 0, "micro_batch": 0}  # of the job, counted from 1


def faulty_model(module: ModuleType) -> None:
    original = module.Qwen3ForCausalLM.forward

    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        if not self.training and named.get("use_cache"):
            generate()
        output = original(self, *arguments, **named)
        if self.training:
            now["micro_batch"] += 1
            train(output, len(named["input_ids"]))
        elif not named.get("use_cache") and len(named["input_ids"]) > ASKED.get("evaluated_rows", 10**9):
            raise out_of_memory()
        return output

    module.Qwen3ForCausalLM.forward = forward


def generate() -> None:
    """What happens at each token that is generated."""
    how = ASKED.get("generation") if now["update"] >= ASKED.get("generation_from", 0) else None
    while how == "hangs in Python":
        time.sleep(1)
    if how == "hangs in C":  # with the interpreter's lock held: no handler of Python's will run
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):
            ctypes.PyDLL(None).pthread_mutex_lock(mutex)
    if how == "never ends":
        time.sleep(0.2)
    if how == "fails":
        raise ValueError("this model cannot generate")


def train(output: Any, rows: int) -> None:
    """What happens at each micro-batch that is trained."""
    if now["update"] >= ASKED.get("not_finite_from", 10**9) and now["update"] <= ASKED.get("not_finite_to", 10**9):
        output.logits = output.logits * float("nan")
    if [now["update"], now["micro_batch"]] == ASKED.get("out_of_memory_in") and rows > ASKED["trained_rows"]:

        def fail(_: Any) -> None:
            raise out_of_memory()

        output.logits.register_hook(fail)


def out_of_memory() -> Exception:
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")


def counted_updates(module: ModuleType) -> None:
    original = module.CallbackHandler.on_step_begin

    def on_step_begin(self: Any, args: Any, state: Any, control: Any) -> Any:
        now.update(update=state.global_step + 1, micro_batch=0)
        return original(self, args, state, control)

    module.CallbackHandler.on_step_begin = on_step_begin


WATCHED = {
    "transformers.models.qwen3.modeling_qwen3": faulty_model,
    "transformers.trainer_callback": counted_updates,
}


class Finder(importlib.abc.MetaPathFinder):
    """Lets the watched modules load as they are, then makes them faulty."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        assert spec and spec.loader
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            WATCHED[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if ASKED:
    sys.meta_path.insert(0, Finder())
