"""On a worker's PYTHONPATH: writes down what the model is really fed, and at which rate the optimizer really steps."""

import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from types import ModuleType
from typing import Any


def note(**facts: Any) -> None:
    with open(os.environ["WITNESS_FILE"], "a") as report:
        report.write(json.dumps(facts) + "\n")


def watch_forward(module: ModuleType) -> None:
    original = module.Qwen3ForCausalLM.forward

    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.training:
            rows = zip(named["input_ids"].tolist(), named["attention_mask"].tolist(), strict=True)
            real = [[t for t, there in zip(ids, mask, strict=True) if there] for ids, mask in rows]
            note(fed=[hashlib.sha256(json.dumps(ids).encode()).hexdigest() for ids in real])
        return original(self, *arguments, **named)

    module.Qwen3ForCausalLM.forward = forward


def watch_step(module: ModuleType) -> None:
    original = module.AdamW.step

    def step(self: Any, *arguments: Any, **named: Any) -> Any:
        note(rate=float(self.param_groups[0]["lr"]))
        return original(self, *arguments, **named)

    module.AdamW.step = step


WATCHED = {"transformers.models.qwen3.modeling_qwen3": watch_forward, "torch.optim.adamw": watch_step}


class Finder(importlib.abc.MetaPathFinder):
    """Lets the watched modules load as they are, then wraps what is to be witnessed."""

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


if "WITNESS_FILE" in os.environ:
    sys.meta_path.insert(0, Finder())
