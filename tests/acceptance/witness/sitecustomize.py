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
        if not self.training:
            return original(self, *arguments, **named)
        batch = {name: named[name].tolist() for name in SHOWN if named.get(name) is not None}
        note(fed=[hashlib.sha256(json.dumps(row).encode()).hexdigest() for row in rows_of(named)])
        seen: dict[str, Any] = {}
        hooks = [
            self.model.register_forward_hook(lambda _, given, output: seen.update(hidden=output[0])),
            self.lm_head.register_forward_pre_hook(lambda _, given: seen.update(shown=given[0])),
        ]
        output = original(self, *arguments, **named)
        for hook in hooks:
            hook.remove()
        running.append(batch | {"places": places_of(**seen)})
        return output

    watched.forward = forward


def places_of(hidden: Any, shown: Any) -> list[tuple[int, int]]:
    """At which (sequence, token) the last layer was asked: found by the very numbers that it was shown."""
    there: dict[bytes, list[tuple[int, int]]] = {}
    for sequence, states in enumerate(hidden.detach()):
        for token, state in enumerate(states):
            there.setdefault(state.numpy().tobytes(), []).append((sequence, token))
    return [there[state.numpy().tobytes()].pop(0) for state in shown.detach()]


def watch_loss(module: ModuleType) -> None:
    """Which token the loss expects behind which; `labels` has one fewer than the batch: the first is not predicted."""
    original = module.cross_entropy

    def cross_entropy(predicted: Any, labels: Any, *arguments: Any, **named: Any) -> Any:
        if running:
            batch = running.pop()
            expected = [[-100] * (len(row) - 1) for row in batch["input_ids"]]
            for (sequence, token), label in zip(batch.pop("places"), labels.tolist(), strict=True):
                expected[sequence][token] = label
            note(trained=batch | {"labels": expected})
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
