"""What is measured beside training: holdout loss and answers. The training RNG and mode are never disturbed."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from daemon.core.config import Settings
from daemon.core.heartbeat import Heartbeat, Phase
from daemon.worker.batches import TokenRows, pad
from daemon.worker.generate import Answers, answer
from daemon.worker.losses import TokenLosses

GATE_ROWS = 1000  # of the holdout, for the verdict
WATCH_ROWS = 64  # of the holdout, while training
SHOWN_CHARACTERS = 400
THINK_TAG = "<think>"


@contextmanager
def aside(model: PreTrainedModel, heartbeat: Heartbeat, phase: Phase) -> Iterator[None]:
    """Evaluation mode in which nothing leaks into training: RNGs, mode, cache flag and phase come back as they were."""
    before, training, use_cache = heartbeat.phase, model.training, model.config.use_cache
    heartbeat.beat(phase)
    states = rng_states()
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        model.config.use_cache = use_cache
        set_rng_states(states)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        heartbeat.beat(before)


def rng_states() -> dict[str, Any]:
    """Every generator's state, as tensors and plain values that torch.load reads with weights_only."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, list(internal), gauss_next],
    }


def set_rng_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices) from one number of 63 bits."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Holdout:
    """The fixed rows that are never trained on, and what to do with them."""

    def __init__(
        self,
        rows: TokenRows,
        settings: Settings,
        tokenizer: PreTrainedTokenizerBase,
        heartbeat: Heartbeat,
        token_losses: TokenLosses,
    ) -> None:
        self._rows, self._settings, self._tokenizer, self._heartbeat = rows, settings, tokenizer, heartbeat
        self._token_losses = token_losses
        self._pad_id = pad_id(tokenizer)

    def loss(self, model: PreTrainedModel, limit: int) -> float:
        """Mean loss a trained token over the first `limit` rows. The same rows in the same batches each time."""
        total, tokens = 0.0, 0
        count = self.count(limit)
        size = self._settings.micro_batch_rows
        with aside(model, self._heartbeat, Phase.EVALUATE), torch.no_grad():
            for first in range(0, count, size):
                batch = pad(self._rows, list(range(first, min(first + size, count))), self._pad_id)
                losses = self._token_losses(model, batch)
                total += float(losses.double().sum())
                tokens += len(losses)
                self._heartbeat.beat(micro_batches=1)
        return total / max(tokens, 1)

    def count(self, limit: int) -> int:
        """How many rows are measured where `limit` are asked for."""
        return min(limit, len(self._rows))

    def rows_for_gate(self) -> int:
        return self.count(GATE_ROWS)

    def examples(self, model: PreTrainedModel) -> tuple[list[dict[str, Any]], bool]:
        """Prompt, golden answer and the model's answer of the first rows, and whether the deadline passed."""
        pairs = [split(*self._rows.row(i)) for i in range(min(self._settings.eval_examples, len(self._rows)))]
        if not pairs:
            return [], False
        with aside(model, self._heartbeat, Phase.GENERATE):
            answers = self._ask(model, pairs)
        shown = [self._show(p, g, a) for (p, g), a in zip(pairs, answers.tokens, strict=True)]
        return shown, answers.timed_out

    def _ask(self, model: PreTrainedModel, pairs: list[tuple[list[int], list[int]]]) -> Answers:
        return answer(
            model,
            [prompt for prompt, _ in pairs],
            longest_golden=max(len(golden) for _, golden in pairs),
            max_new_tokens=self._settings.max_new_tokens,
            timeout_seconds=self._settings.generation_timeout_seconds,
            pad_id=self._pad_id,
            eos_ids=eos_ids(model, self._tokenizer),
            heartbeat=self._heartbeat,
        )

    def _show(self, prompt: list[int], golden: list[int], said: list[int] | None) -> dict[str, Any]:
        golden_text = readable(self._tokenizer, golden)
        output = None if said is None else readable(self._tokenizer, said)
        return {
            "prompt": readable(self._tokenizer, prompt),
            "golden_answer": golden_text,
            "golden_tokens": len(golden),
            "model_output": output,
            "model_tokens": None if said is None else len(said),
            "match": None if output is None else output.strip() == golden_text.strip(),
        }


def split(ids: np.ndarray, mask: np.ndarray) -> tuple[list[int], list[int]]:
    """A row as (prompt, answer) token ids: up to the last trained run, and that run. Plain text: half and half."""
    trained = np.flatnonzero(mask)
    if len(trained) == len(ids):
        return ids[: len(ids) // 2].tolist(), ids[len(ids) // 2 :].tolist()
    end = int(trained[-1]) + 1
    gaps = np.flatnonzero(np.diff(trained) > 1)
    start = int(trained[gaps[-1] + 1]) if len(gaps) else int(trained[0])
    return ids[:start].tolist(), ids[start:end].tolist()


def readable(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    """Text for people, without special tokens, its middle left out where it is long."""
    text = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    half = SHOWN_CHARACTERS // 2
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:half]} … {text[-half:]}"


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token; padded positions are masked, so any token serves where there is none."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the tokenizer's and those of the model's generation config."""
    config = getattr(model, "generation_config", None)
    configured = config.eos_token_id if config is not None else None
    more = configured if isinstance(configured, list) else [configured]
    return sorted({int(t) for t in [tokenizer.eos_token_id, *more] if t is not None})
