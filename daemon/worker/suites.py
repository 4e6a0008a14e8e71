"""The suites of data/benchmarks: what they say of the trained model and of the base model, in bounded time."""

import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from daemon.core import room
from daemon.core.attempts import Assignment, Measured, SuiteFigures, SuiteGiven
from daemon.core.config import Settings
from daemon.core.errors import BadData
from daemon.core.heartbeat import Heartbeat, Phase
from daemon.core.paths import Attempt, Workspace
from daemon.data.suites import read_meta
from daemon.jobs import history
from daemon.worker import baselines
from daemon.worker.allowance import Allowance, Speeds, Unmeasured
from daemon.worker.batches import TokenRows, pad
from daemon.worker.callbacks import Orders
from daemon.worker.evaluate import aside, eos_ids, pad_id, split, text
from daemon.worker.generate import answer
from daemon.worker.losses import TokenLosses

SHARE = 0.10  # of the job's time
LEAST_SECONDS = 10.0  # for files that are trained in a minute or two
UNREAD = "it was not read before the training began: see logs/intake.log"


@dataclass(frozen=True)
class Suite:
    """A suite with its rows; None and the reason where there are none."""

    given: SuiteGiven
    rows: TokenRows | None
    left_out_rows: int
    reason: str | None

    @classmethod
    def open(cls, workspace: Workspace, given: SuiteGiven) -> "Suite":
        folder = workspace.root / given.folder
        meta = read_meta(folder)
        if meta is None:
            return cls(given, None, 0, UNREAD)
        try:
            return cls(given, None if meta.reason else TokenRows(folder), meta.left_out_rows, meta.reason)
        except (OSError, ValueError, BadData) as error:
            return cls(given, None, meta.left_out_rows, f"its token cache is damaged: {error}")

    def figures(self, **found: Any) -> SuiteFigures:
        rows = len(self.rows) if self.rows else 0
        return SuiteFigures(
            key=self.given.key,
            rows=rows,
            left_out_rows=self.left_out_rows,
            questions=len(self.questions),
            **found,
        )

    @cached_property
    def questions(self) -> list[int]:
        """The rows that are asked about; of a text everything is trained."""
        rows = self.rows
        return [i for i in range(len(rows)) if not rows.row(i)[1].all()] if rows else []


class Suites:
    """The suites of one job, opened at its beginning: what happens to their files later is of no concern to it."""

    def __init__(
        self,
        assignment: Assignment,
        settings: Settings,
        tokenizer: PreTrainedTokenizerBase,
        heartbeat: Heartbeat,
        token_losses: TokenLosses,
        stacks: Path | None = None,
    ) -> None:
        self._stacks = stacks
        self._workspace = Workspace(Path(assignment.workspace))
        self._assignment, self._settings = assignment, settings
        self._tokenizer, self._heartbeat, self._token_losses = tokenizer, heartbeat, token_losses
        self._pad_id = pad_id(tokenizer)
        self._speeds = Speeds()
        self._suites = [Suite.open(self._workspace, given) for given in assignment.suites]
        # The short ones first: so that as many as can be are measured.
        self._suites.sort(key=lambda suite: len(suite.rows.ids) if suite.rows else 0)

    def leave(
        self, attempt: Attempt, model: PreTrainedModel, checkpoint: str, orders: Orders, say: Callable[[str], object]
    ) -> None:
        """measured.json of this attempt, where there are suites; what goes wrong is said, and ends no training."""
        if not self._suites:
            return
        try:
            self.measure(model, checkpoint, orders, say).save(attempt.measured)
        except Exception as error:
            if room.refusal(error):
                raise
            traceback.print_exc()
            say(f"── the suites could not be measured: {type(error).__name__}: {error}")

    def measure(
        self, model: PreTrainedModel, checkpoint: str, orders: Orders, say: Callable[[str], object]
    ) -> Measured:
        """What they say of the trained model, and of the base model where that is not known yet.

        The last that is done with a model: after full training its weights are then those of the base model.
        """
        run = self._workspace.run(self._assignment.job)
        seconds = max(SHARE * history.training_seconds(history.read(run.log)), LEAST_SECONDS)
        base = baselines.known(self._workspace, self._assignment.base_model_sha256)
        lacking = any(suite.rows and suite.given.key not in base for suite in self._suites)
        allowance = Allowance(seconds / 2 if lacking else seconds, orders)  # half of it is for the base model
        trained = {suite.given.name: self._figures(suite, model, allowance, say) for suite in self._suites}
        speeds, self._speeds = self._speeds, Speeds()  # those of the base model say nothing new
        spent = allowance.spent
        rest = Allowance(seconds - spent, orders)
        return Measured(
            checkpoint=checkpoint,
            suites=trained,
            base=self._base(model, base, trained, rest, say),
            tokens_per_second=speeds.by_length(),
            generated_tokens_per_second=speeds.of_generation(),
            seconds=round(spent + rest.spent, 3),
            allowed_seconds=round(seconds, 3),
        )

    # ---- one suite, one model ----

    def _figures(
        self, suite: Suite, model: PreTrainedModel, allowance: Allowance, say: Callable[[str], object]
    ) -> SuiteFigures:
        """Whatever goes wrong here costs figures, and never what was trained."""
        found: dict[str, Any] = {}
        try:
            if suite.rows is None:
                raise Unmeasured(suite.reason or UNREAD)
            found |= self._perplexity(suite.rows, model, allowance)
            found["exact_match"] = self._exact_match(suite.rows, suite.questions, model, allowance)
        except Unmeasured as why:
            found["reason"] = str(why)
        except Exception as error:
            traceback.print_exc()
            found["reason"] = f"{type(error).__name__}: {error}"
        figures = suite.figures(**found)
        say(f"── suite {suite.given.name}: {_in_words(figures)}")
        return figures

    def _perplexity(self, rows: TokenRows, model: PreTrainedModel, allowance: Allowance) -> dict[str, float]:
        total, count = 0.0, 0
        with aside(model, self._heartbeat, Phase.EVALUATE), torch.no_grad():
            for batch in self._batches(rows, range(len(rows))):
                allowance.check()
                began = time.monotonic()
                losses = self._token_losses(model, pad(rows, batch, self._pad_id))
                total += float(losses.double().sum())  # which waits for the device
                count += len(losses)
                self._note_speed(rows, batch, time.monotonic() - began)
                self._heartbeat.beat(micro_batches=1)
        loss = total / max(count, 1)
        if not math.isfinite(loss):
            raise Unmeasured("the loss is not a finite number")
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def _batches(self, rows: TokenRows, chosen: Any) -> Iterator[list[int]]:
        """By length, so that little is padded; the same rows in the same batches each time."""
        order = sorted(chosen, key=lambda i: (len(rows.row(i)[0]), i))
        size = self._assignment.micro_batch_rows or self._settings.micro_batch_rows
        yield from (order[first : first + size] for first in range(0, len(order), size))

    def _note_speed(self, rows: TokenRows, batch: list[int], seconds: float) -> None:
        lengths = [len(rows.row(i)[0]) for i in batch]
        speed = self._speeds.read[1 << (max(lengths) - 1).bit_length()]
        speed[0] += sum(lengths)
        speed[1] += max(seconds, 1e-9)

    def _exact_match(
        self, rows: TokenRows, questions: list[int], model: PreTrainedModel, allowance: Allowance
    ) -> float | None:
        """The share of the questions answered word for word; None where nothing is asked."""
        if questions and self._assignment.no_generation_because:
            raise Unmeasured(f"nothing is generated: {self._assignment.no_generation_because}")
        right = 0
        for batch in self._batches(rows, questions):
            allowance.check()
            pairs = [split(*rows.row(i)) for i in batch]
            answers = self._ask(model, pairs, allowance)
            right += sum(
                text(self._tokenizer, said) == text(self._tokenizer, golden)
                for said, (_, golden) in zip(answers, pairs, strict=True)
            )
        return right / len(questions) if questions else None

    def _ask(
        self, model: PreTrainedModel, pairs: list[tuple[list[int], list[int]]], allowance: Allowance
    ) -> list[list[int]]:
        began, limit = time.monotonic(), self._settings.generation_timeout_seconds
        with aside(model, self._heartbeat, Phase.GENERATE):
            answers = answer(
                model,
                [prompt for prompt, _ in pairs],
                longest_golden=max(len(golden) for _, golden in pairs),
                max_new_tokens=self._settings.max_new_tokens,
                timeout_seconds=min(limit, allowance.left),
                pad_id=self._pad_id,
                eos_ids=eos_ids(model, self._tokenizer),
                heartbeat=self._heartbeat,
                stacks=self._stacks,
            )
        said = [tokens for tokens in answers.tokens if tokens is not None]
        if len(said) < len(pairs):
            allowance.check()
            raise Unmeasured(f"an answer took more than generation_timeout_seconds ({limit:g} s)")
        self._speeds.generated[0] += sum(len(tokens) for tokens in said)
        self._speeds.generated[1] += time.monotonic() - began
        return said

    # ---- the base model ----

    def _base(
        self,
        model: PreTrainedModel,
        known: dict[str, SuiteFigures],
        trained: dict[str, SuiteFigures],
        allowance: Allowance,
        say: Callable[[str], object],
    ) -> dict[str, SuiteFigures]:
        """Of every suite: what is known already, or else is measured now and kept."""
        why = "of the trained model there are no figures either"
        lacking = [s for s in self._suites if trained[s.given.name].reason is None and s.given.key not in known]
        try:
            if lacking:
                allowance.check()
                self._heartbeat.beat(Phase.LOAD)
                with baselines.base_model(model, self._workspace.root / self._assignment.base_model, self._settings):
                    known |= {suite.given.key: self._baseline(suite, model, allowance, say) for suite in lacking}
        except Unmeasured as reason:
            why = str(reason)
        except Exception as error:
            traceback.print_exc()
            why = f"{type(error).__name__}: {error}"
        return {
            suite.given.name: known.get(suite.given.key) or suite.figures(reason=suite.reason or why)
            for suite in self._suites
        }

    def _baseline(
        self, suite: Suite, model: PreTrainedModel, allowance: Allowance, say: Callable[[str], object]
    ) -> SuiteFigures:
        say("── the base model:")
        figures = self._figures(suite, model, allowance, say)
        if figures.reason is None:
            baselines.keep(self._workspace, self._assignment.base_model_sha256, suite.given.name, figures)
        return figures


def _in_words(figures: SuiteFigures) -> str:
    shown = {"perplexity": figures.perplexity, "exact match": figures.exact_match}
    parts = [f"{name} {value:.4g}" for name, value in shown.items() if value is not None]
    return ", ".join([*parts, *([figures.reason] if figures.reason else [])])
