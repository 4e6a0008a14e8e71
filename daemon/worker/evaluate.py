"""What is measured beside training: holdout loss and answers. The training RNG and mode are never disturbed."""

import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from daemon.core.config import Settings
from daemon.core.heartbeat import Heartbeat, Phase
from daemon.worker.batches import TokenRows, pad
from daemon.worker.generate import Answers, answer
from daemon.worker.losses import TokenLosses
from daemon.worker.memory import is_exhausted

GATE_ROWS = 1000  # of the holdout, for the verdict
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
        with torch.compiler.set_stance("force_eager"):  # with a cache of keys and values all would be compiled anew
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


@dataclass(frozen=True)
class Examined:
    """What a job's evaluations have come to so far; kept in its checkpoints."""

    best_loss: float | None = None  # on the rows of the holdout that are measured while training
    worse_in_a_row: int = 0  # evaluations without a better one, at the last
    unanswered_in_a_row: int = 0  # evaluations whose generation came to nothing, at the last

    def after(self, loss: float) -> "Examined":
        """With one more evaluation."""
        if self.best_loss is None or loss < self.best_loss:
            return replace(self, best_loss=loss, worse_in_a_row=0)
        return replace(self, worse_in_a_row=self.worse_in_a_row + 1)


class Holdout:
    """The fixed rows that are never trained on, and what to do with them."""

    def __init__(
        self,
        rows: TokenRows,
        settings: Settings,
        tokenizer: PreTrainedTokenizerBase,
        heartbeat: Heartbeat,
        token_losses: TokenLosses,
        micro_batch_rows: int | None = None,
        stacks: Path | None = None,
    ) -> None:
        self._rows, self._settings, self._tokenizer, self._heartbeat = rows, settings, tokenizer, heartbeat
        self._token_losses, self._stacks = token_losses, stacks
        self._pad_id = pad_id(tokenizer)
        self._batch_rows = micro_batch_rows or settings.micro_batch_rows

    def loss(self, model: PreTrainedModel, limit: int) -> float | None:
        """Mean loss a trained token over the first `limit` rows; None where memory does not suffice for one of them.

        The same rows in the same batches each time; in smaller ones from the first that was too large.
        """
        total, tokens, first = 0.0, 0, 0
        count = self.count(limit)
        with aside(model, self._heartbeat, Phase.EVALUATE), torch.no_grad():
            while first < count:
                batch = pad(self._rows, list(range(first, min(first + self._batch_rows, count))), self._pad_id)
                losses = self._losses(model, batch)
                if losses is None and self._batch_rows == 1:
                    return None
                if losses is None:
                    self._batch_rows //= 2
                    continue
                total += float(losses.double().sum())
                tokens += len(losses)
                first += self._batch_rows
                self._heartbeat.beat(micro_batches=1)
        return total / max(tokens, 1)

    def _losses(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """None where memory does not suffice; what the attempt held is free again."""
        try:
            return self._token_losses(model, batch)
        except (RuntimeError, MemoryError) as error:
            if not is_exhausted(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def count(self, limit: int) -> int:
        """How many rows are measured where `limit` are asked for."""
        return min(limit, len(self._rows))

    def examples(self, model: PreTrainedModel, *, generate: bool = True) -> tuple[list[dict[str, Any]], str | None]:
        """Prompt, golden answer and the model's answer of the first rows, and why an answer is missing, in words."""
        pairs = [split(*self._rows.row(i)) for i in range(min(self._settings.eval_examples, len(self._rows)))]
        said, failure = Answers([None] * len(pairs), False), None
        if pairs and generate:
            with aside(model, self._heartbeat, Phase.GENERATE):
                said, failure = self._try_to_ask(model, pairs)
        shown = [self._show(p, g, a) for (p, g), a in zip(pairs, said.tokens, strict=True)]
        return shown, failure

    def _try_to_ask(
        self, model: PreTrainedModel, pairs: list[tuple[list[int], list[int]]]
    ) -> tuple[Answers, str | None]:
        """What goes wrong in generation is said, and training goes on; but for a device that is lost."""
        try:
            said = self._ask(model, pairs)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            traceback.print_exc()
            return Answers([None] * len(pairs), False), f"{type(error).__name__}: {error}"
        seconds = self._settings.generation_timeout_seconds
        return said, f"not within {seconds:g} s" if said.timed_out else None

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
            stacks=self._stacks,
        )

    def _show(self, prompt: list[int], golden: list[int], said: list[int] | None) -> dict[str, Any]:
        return {
            "prompt": readable(self._tokenizer, prompt),
            "golden_answer": readable(self._tokenizer, golden),
            "golden_tokens": len(golden),
            "model_output": None if said is None else readable(self._tokenizer, said),
            "model_tokens": None if said is None else len(said),
            "match": None if said is None else text(self._tokenizer, said) == text(self._tokenizer, golden),
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


def text(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    """What tokens say, without special ones."""
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def readable(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    """The same for people: the middle is left out where it is long."""
    whole, half = text(tokenizer, tokens), SHOWN_CHARACTERS // 2
    return whole if len(whole) <= SHOWN_CHARACTERS else f"{whole[:half]} … {whole[-half:]}"


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token; padded positions are masked, so any token serves where there is none."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the tokenizer's and those of the model's generation config."""
    config = getattr(model, "generation_config", None)
    configured = config.eos_token_id if config is not None else None
    more = configured if isinstance(configured, list) else [configured]
    return sorted({int(t) for t in [tokenizer.eos_token_id, *more] if t is not None})
