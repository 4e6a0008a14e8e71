"""Programs for experiments that `report_to` names: told of one run a job, whatever interrupts it, and never trusted."""

import os
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations import integration_utils

from daemon.core.paths import Run
from daemon.worker.evaluate import rng_states, set_rng_states
from daemon.worker.log import Log


def name_run(run: Run) -> None:
    """Every attempt of a job is the same run to them. The user's own variables win."""
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.root / "tensorboard"))
    os.environ.setdefault("WANDB_RUN_ID", run.root.name)
    os.environ.setdefault("WANDB_RESUME", "allow")
    os.environ.setdefault("WANDB_DIR", str(run.root))


class Quietly(TrainerCallback):
    """Somebody else's callback: what it raises is said once, what it draws at random is put back."""

    def __init__(self, reporter: TrainerCallback, log: Log) -> None:
        self._reporter, self._log, self._failed = reporter, log, False
        self._end: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def on_train_end(self, *given: Any, **named: Any) -> None:
        """The last evaluation comes after it."""
        self._end = given, named

    def end(self) -> None:
        if self._end:
            self._tell("on_train_end", *self._end[0], **self._end[1])

    def _tell(self, event: str, *given: Any, **named: Any) -> None:
        if self._failed:
            return
        states = rng_states()
        try:
            getattr(self._reporter, event)(*given, **named)
        except Exception as error:
            self._failed = True
            name = type(self._reporter).__name__
            self._log.say(f"── {name} is told no more, since it failed: {type(error).__name__}: {error}")
        finally:
            set_rng_states(states)


def quieten(trainer: Trainer, log: Log) -> None:
    """Let no callback of those programs touch the training."""
    handler = trainer.callback_handler
    handler.callbacks = [
        Quietly(callback, log) if type(callback).__module__ == integration_utils.__name__ else callback
        for callback in handler.callbacks
    ]


def end_reports(trainer: Trainer) -> None:
    """There is nothing more to be told."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, Quietly):
            callback.end()


def _quiet(event: str) -> Any:
    def tell(self: Quietly, *given: Any, **named: Any) -> None:
        self._tell(event, *given, **named)

    return tell


for _event in (name for name in dir(TrainerCallback) if name.startswith("on_") and name != "on_train_end"):
    setattr(Quietly, _event, _quiet(_event))
