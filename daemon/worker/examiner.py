"""Evaluations on the holdout: when they are affordable, how large, what they say, and when generation is given up."""

import time
from dataclasses import replace
from typing import Any

from daemon.core.config import Settings
from daemon.worker.costs import Cost, Costs
from daemon.worker.evaluate import GATE_ROWS, THINK_TAG, Examined, Holdout
from daemon.worker.log import Log
from daemon.worker.saving import Saver
from daemon.worker.trainer import JobTrainer

LEAST_ROWS = 64  # of the holdout, while training
LOSS_SHARE = 0.02  # of the time between two evaluations, for the loss on the holdout
UNANSWERED = 3  # evaluations in a row whose generation came to nothing; then there is no more of it in this job
MARKS = {True: "✓", False: "✗", None: "?"}


class Examiner:
    """Examines one job's model while it trains, and for the gate. Nothing of it changes the training."""

    def __init__(
        self, holdout: Holdout, settings: Settings, log: Log, saver: Saver, costs: Costs, silent_because: str | None
    ) -> None:
        self._holdout, self._settings, self._log = holdout, settings, log
        self._saver, self._costs = saver, costs
        self._silent_because = silent_because  # why nothing is generated for the rest of the job, in words
        self._row_seconds = 0.0  # of the holdout's loss, as the last evaluation had it; 0 = not known
        self._generation_seconds = 0.0
        self._rows: int | None = None  # measured while training: the same all along, so that the losses compare
        if settings.early_stopping_patience:  # what decides must not depend on a clock
            self._rows = holdout.count(GATE_ROWS)
        self._last = time.monotonic()

    @property
    def _state(self) -> Examined:
        return self._saver.examined

    def affordable(self) -> bool:
        """Whether one more evaluation leaves watching within its share of the time."""
        if self._settings.max_watching_percent >= 100 or self._settings.early_stopping_patience:
            return True
        expected = self._row_seconds * self._holdout.count(self._rows or LEAST_ROWS) + self._generation_seconds
        spent = self._costs.watching + expected
        return spent <= self._settings.max_watching_percent / 100 * self._costs.elapsed

    def watch(self, trainer: JobTrainer, step: int, training_loss: float) -> None:
        """Examine a model in training: the loss on the first rows of the holdout, and answers."""
        if self._rows is None:
            self._rows = self._holdout.count(rows_to_watch(time.monotonic() - self._last, self._row_seconds))
        loss = self._examine(trainer, step, training_loss, self._rows)
        if loss is not None:
            self._saver.examined = self._state.after(loss)
        self._last = time.monotonic()
        self._costs.show()

    @property
    def stop_because(self) -> str | None:
        """Why training should end before its last row, in words."""
        patience, state = self._settings.early_stopping_patience, self._state
        if patience is None or state.worse_in_a_row < patience:
            return None
        return f"the loss on the holdout was not better than {state.best_loss:.4f} in {patience} evaluations in a row"

    def examine_for_gate(self, trainer: JobTrainer, step: int, training_loss: float | None) -> tuple[float | None, int]:
        """The loss on all rows that the gate looks at, and how many they are."""
        rows = self._holdout.count(GATE_ROWS)
        loss = self._examine(trainer, step, training_loss, rows)
        self._last = time.monotonic()
        return loss, rows

    def _examine(self, trainer: JobTrainer, step: int, training_loss: float | None, rows: int) -> float | None:
        """Measure, write it down, show what the model answers; the mean loss a trained token."""
        epoch = trainer.updates.stream.epoch(step)
        with self._costs.of(Cost.VALIDATION):
            began = time.monotonic()
            loss = self._holdout.loss(trainer.language_model, rows)
            self._row_seconds = (time.monotonic() - began) / max(rows, 1)
        with self._costs.of(Cost.GENERATION):
            began, generate = time.monotonic(), self._silent_because is None
            examples, failure = self._holdout.examples(trainer.language_model, generate=generate)
            self._generation_seconds = time.monotonic() - began
        global_step = trainer.assignment.base_step + step
        examples = [{"step": global_step, **e} for e in examples]
        gap = None if loss is None or training_loss is None else loss - training_loss
        answered = of_answers(examples)
        self._log.write(
            "eval",
            step,
            epoch,
            validation_loss=loss,
            validation_rows=rows,
            val_train_gap=gap,
            **answered,
            generation_timeouts=int(failure is not None),
            generation_failure=failure,
            examples=examples,
        )
        trainer.report(eval_loss=loss, eval_accuracy_percent=answered["accuracy_percent"])
        said = "not measured: out of memory with a single row" if loss is None else f"{loss:.4f}"
        self._log.say(f"── evaluation at step {global_step} · validation loss {said}")
        for e in examples:
            self._log.say(
                f"  {MARKS[e['match']]} {e['prompt']}\n    golden {e['golden_answer']}\n    model  {e['model_output']}"
            )
        if generate and examples:
            self._count(step, epoch, failure)
        return loss

    def _count(self, step: int, epoch: float, failure: str | None) -> None:
        """Give generation up where it comes to nothing again and again."""
        self._saver.examined = replace(
            self._state, unanswered_in_a_row=self._state.unanswered_in_a_row + 1 if failure else 0
        )
        if failure:
            self._log.say(f"── generation came to nothing: {failure}; training goes on")
        if self._state.unanswered_in_a_row >= UNANSWERED:
            self._silent_because = f"{UNANSWERED} evaluations in a row without an answer; the last: {failure}"
            self._log.write("event", step, epoch, event="generation_off", reason=self._silent_because)
            self._log.say(f"── no more generation in this job: {self._silent_because}")


def rows_to_watch(seconds_between: float, row_seconds: float) -> int:
    """How many rows of the holdout to measure while training; 0 seconds a row = not known."""
    affordable = int(LOSS_SHARE * seconds_between / row_seconds) if row_seconds else 0
    return max(LEAST_ROWS, min(affordable, GATE_ROWS))


def of_answers(examples: list[dict[str, Any]]) -> dict[str, float | None]:
    """How many answers match, and how many think aloud, in percent of those that came."""
    outputs = [e["model_output"] for e in examples if e["model_output"] is not None]
    matches = [e["match"] for e in examples if e["match"] is not None]
    return {
        "accuracy_percent": percent(sum(matches), len(matches)),
        "think_tag_percent": percent(sum(THINK_TAG in output for output in outputs), len(outputs)),
    }


def percent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 1) if whole else None
