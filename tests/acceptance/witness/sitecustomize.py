"""On a worker's PYTHONPATH: writes down what the model is really fed, and at which rate the optimizer really steps."""

import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from itertools import pairwise
from types import ModuleType
from typing import Any


def note(**facts: Any) -> None:
    with open(os.environ["WITNESS_FILE"], "a") as report:
        report.write(json.dumps(facts) + "\n")


def rows_of(named: dict[str, Any]) -> list[list[int]]:
    """The rows in a batch: without padding by the mask, or, packed, from one restart of the positions to the next."""
    ids = named["input_ids"].tolist()
    if named.get("attention_mask") is not None:
        masks = named["attention_mask"].tolist()
        return [[t for t, there in zip(row, mask, strict=True) if there] for row, mask in zip(ids, masks, strict=True)]
    rows = []
    for sequence, positions in zip(ids, named["position_ids"].tolist(), strict=True):
        starts = [place for place, position in enumerate(positions) if position == 0] + [len(sequence)]
        rows += [sequence[start:end] for start, end in pairwise(starts)]
    return [row for row in rows if len(set(row)) > 1]  # the padding is one token over and over


running: list[dict[str, Any]] = []  # the batch whose loss is still to come


def watch_forward(module: ModuleType) -> None:
    watched = getattr(module, WATCHED_MODELS[module.__name__])
    original = watched.forward

    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        running.clear()
        if self.training:
            running.append({name: named[name].tolist() for name in SHOWN if named.get(name) is not None})
            note(fed=[hashlib.sha256(json.dumps(row).encode()).hexdigest() for row in rows_of(named)])
        return original(self, *arguments, **named)

    watched.forward = forward


def watch_loss(module: ModuleType) -> None:
    """Which token the loss expects behind which; `labels` has one fewer than the batch: the first is not predicted."""
    original = module.cross_entropy

    def cross_entropy(predicted: Any, labels: Any, *arguments: Any, **named: Any) -> Any:
        if running:
            assert predicted.shape[::2] == labels.shape, "(sequences, vocabulary, tokens - 1)"
            note(trained=running.pop() | {"labels": labels.tolist()})
        return original(predicted, labels, *arguments, **named)

    module.cross_entropy = cross_entropy


def watch_step(module: ModuleType) -> None:
    original = module.AdamW.step

    def step(self: Any, *arguments: Any, **named: Any) -> Any:
        note(rate=float(self.param_groups[0]["lr"]))
        return original(self, *arguments, **named)

    module.AdamW.step = step


SHOWN = ("input_ids", "attention_mask", "position_ids")
WATCHED_MODELS = {
    f"transformers.models.{name.lower()}.modeling_{name.lower()}": f"{name}ForCausalLM"
    for name in ("Qwen3", "Llama", "Mistral", "Gemma2")
}
WATCHED = {"torch.nn.functional": watch_loss, "torch.optim.adamw": watch_step}
WATCHED |= dict.fromkeys(WATCHED_MODELS, watch_forward)


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
