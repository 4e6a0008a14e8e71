"""What happens between two updates: watch the numbers, show an example, evaluate, save, obey."""

import math
import signal
import time
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from daemon.core.attempts import Control, Evaluation
from daemon.core.heartbeat import Heartbeat
from daemon.core.paths import Attempt
from daemon.worker.costs import Cost, Costs
from daemon.worker.evaluate import readable, seed_everything, set_rng_states, split
from daemon.worker.examiner import Examiner
from daemon.worker.log import Log
from daemon.worker.saving import Saved, Saver
from daemon.worker.spikes import Spikes
from daemon.worker.tally import Tally
from daemon.worker.trainer import JobTrainer

COSTS_SECONDS = 10.0  # between two looks at what watching costs


class Orders:
    """What the daemon (control.json) or the system (SIGTERM) wants of this attempt."""

    def __init__(self, attempt: Attempt) -> None:
        self._path = attempt.control
        self._terminated = False
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: Any) -> None:
        self._terminated = True

    def pending(self) -> Control | None:
        """The order to obey at the next step's end, if any; one look at the disk, about a microsecond."""
        if self._path.exists():
            return Control.load(self._path)  # first: SIGTERM comes too where this was not obeyed in time
        return Control(action="stop", reason="SIGTERM") if self._terminated else None


class Step(TrainerCallback):
    """The one callback: its `on_step_end` is the table of contents of what happens between two updates."""

    def __init__(
        self,
        *,
        log: Log,
        orders: Orders,
        saver: Saver,
        examiner: Examiner | None,
        attempt: Attempt,
        evaluation: Evaluation,
        heartbeat: Heartbeat,
        rng: dict[str, Any] | None,
        seed: int,
        losses: list[float],
        costs: Costs,
    ) -> None:
        self.trainer: JobTrainer  # set by the trainer's owner, which needs the callback first
        self.interrupted: Control | None = None
        self.stopped_early: str | None = None  # why, in words
        self.evaluation = evaluation
        self._log, self._orders, self._saver, self._examiner = log, orders, saver, examiner
        self._attempt, self._heartbeat = attempt, heartbeat
        self._rng, self._seed = rng, seed
        self._losses = list(losses)
        self._costs = costs
        self._spikes = Spikes()
        self._rate = 0.0
        self._tokens, self._since, self._steps = 0, time.monotonic(), 0
        self._tally = Tally()

    # ---- Hugging Face's events ----

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._examiner and self.evaluation.before is None and self._rng is None:  # at a job's beginning
            before, rows = self.evaluate_for_gate(self.trainer.first_step)
            self.evaluation = self.evaluation.model_copy(update={"before": before, "rows": rows})
            self.evaluation.save(self._attempt.evaluation)
        self._since = time.monotonic()
        self._costs.begin()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == self.trainer.first_step:
            # Only now: building the data loader's iterator has drawn from torch's generator.
            if self._rng is None:
                seed_everything(self._seed)
            else:
                set_rng_states(self._rng)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.trainer.admit(state.global_step + 1)
        assert self.trainer.optimizer is not None, "there is no step without one"
        self._rate = float(self.trainer.optimizer.param_groups[0]["lr"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step, settings = state.global_step, self.trainer.settings
        self._heartbeat.beat(job_step=step)
        self._count()
        last = step >= state.max_steps or self._examine(step, state.max_steps)
        if step % settings.logging_steps == 0 or last:
            with self._costs.of(Cost.NUMBERS):
                self._log_numbers(step)
                self._costs.show(after_seconds=COSTS_SECONDS)
        order = None if last else self._orders.pending()
        dropped = order is not None and order.action == "drop"
        if step == self.trainer.first_step + 1:
            self._saver.prepare(self.trainer)
        self._note(self._saver.settle(wait=False))
        if not dropped and (last or order or self._due(step)):
            with self._costs.of(Cost.SAVE):
                self.save(final=last, wait=last or order is not None)
        if last or order:
            self._costs.show()
        if order:
            self.interrupted = order
        if order or last:
            control.should_training_stop = True

    def _examine(self, step: int, max_steps: int) -> bool:
        """Evaluate where that is due in the middle of a training; whether the training ends for what it shows."""
        due = self._examiner and step % self.trainer.settings.eval_steps == 0 and step < max_steps
        if not (due and self._examiner and self._examiner.affordable()):
            return False
        self._settle()
        began = time.monotonic()
        self._examiner.watch(self.trainer, step, self.recent_loss)
        self._since += time.monotonic() - began  # the speed that is shown is that of training
        self.stopped_early = self._examiner.stop_because
        if self.stopped_early:
            self._event(step, "stopped_early", reason=self.stopped_early)
        return self.stopped_early is not None

    def _due(self, step: int) -> bool:
        """Whether to save in the middle. Not while updates are skipped: another try must begin before them."""
        if not self._saver.due(step):
            return False
        self._settle()
        return not self.trainer.guard.in_a_row

    # ---- deeds ----

    def save_beginning(self) -> None:
        """Give up the update that was begun last, and save what there was before it."""
        self.trainer.abandon_update()
        step = self.trainer.state.global_step
        if step > self.trainer.first_step:
            self.save(final=False, wait=True)

    def evaluate_for_gate(self, step: int) -> tuple[float | None, int]:
        """The loss a trained token that the gate asks for, and on how many rows of the holdout."""
        assert self._examiner is not None
        self._settle()
        with self._costs.of(Cost.GATE):
            began = step == self.trainer.first_step and not self._losses
            return self._examiner.examine_for_gate(self.trainer, step, None if began else self.recent_loss)

    def save(self, *, final: bool, wait: bool) -> None:
        self._event(self.trainer.state.global_step, "saving", final=final)
        self._settle()
        self._note(self._saver.save(self.trainer, self._losses, final=final, wait=wait))

    def _note(self, ended: list[Saved]) -> None:
        for saved in ended:
            facts = {"final": saved.final, "aside": saved.aside, "waits_because": self._saver.waits_because}
            times = {"seconds": round(saved.seconds, 3), "stall_seconds": round(saved.stall_seconds, 3)}
            self._event(saved.step, "saved", checkpoint=saved.folder.name, **facts, **times)

    @property
    def recent_loss(self) -> float:
        """Mean training loss since the last line of the log; that line's own where nothing came since."""
        return sum(self._losses) / len(self._losses) if self._losses else self._last_loss

    _last_loss = math.nan

    # ---- numbers ----

    def _count(self) -> None:
        self._tokens += self.trainer.update_tokens
        self._steps += 1
        if self.trainer.guard.full:
            self._settle()

    def _settle(self) -> None:
        """Learn what became of the updates since the last look; on a GPU this waits for it."""
        for update in self.trainer.settle():
            if update.skipped:
                figures = {"loss": update.loss, "grad_norm": update.gradient}
                self._event(update.step, "update_skipped", lines=update.lines, **figures)
            elif update.lines:  # all rows of an update may be left out
                self._losses.append(update.loss)
                usual = self._spikes.usual(update.loss)
                if usual is not None:
                    figures = {"loss": update.loss, "usual": usual, "grad_norm": update.gradient}
                    self._event(update.step, "loss_spike", lines=update.lines, **figures)

    def _log_numbers(self, step: int) -> None:
        self._settle()
        seconds = max(time.monotonic() - self._since, 1e-9)
        self._last_loss = loss = self.recent_loss if self._losses else math.nan  # all were skipped
        norm, speed = float(self.trainer.grad_norm), self._tokens / seconds
        example = self._example(step)
        self._log.write(
            "log",
            step,
            self._epoch(step),
            loss=loss,
            learning_rate=self._rate,
            grad_norm=norm,
            tokens_per_second=round(speed, 1),
            steps_per_second=round(self._steps / seconds, 3),
            skipped_updates=self.trainer.guard.skipped,
            memory_bytes=memory_bytes(),
            **self._tally.count(self.trainer.updates.rows, self.trainer.consumed),
            example=example,
        )
        self._log.say(
            f"step {self.trainer.assignment.base_step + step} · {step}/{len(self.trainer.updates)} of this file"
            f" · epoch {self._epoch(step):.2f} · loss {loss:.4f} · grad {norm:.2f} · rate {self._rate:.2e}"
            f" · {speed:,.0f} tokens/s"
        )
        if example:
            prompt, golden = example["prompt"], example["golden_answer"]
            self._log.say(f"  prompt {prompt}\n  golden {golden}\n  loss   {example['loss']:.4f}")
        figures = {"loss": loss, "learning_rate": self._rate, "grad_norm": norm, "tokens_per_second": speed}
        self.trainer.report(epoch=self._epoch(step), **figures)
        self._losses, self._tokens, self._steps, self._since = [], 0, 0, time.monotonic()

    def _example(self, step: int) -> dict[str, Any] | None:
        """The row at the beginning of the update; None while no update had one."""
        if self.trainer.example is None:
            return None
        row, loss = self.trainer.example
        tokenizer = self.trainer.tokenizer
        prompt, golden = split(*self.trainer.updates.rows.row(row))
        return {
            "step": self.trainer.assignment.base_step + step,
            "prompt": readable(tokenizer, prompt),
            "golden_answer": readable(tokenizer, golden),
            "golden_tokens": len(golden),
            "model_output": None,
            "model_tokens": None,
            "match": None,
            "loss": float(loss),
        }

    def _event(self, step: int, event: str, **facts: Any) -> None:
        self._log.write("event", step, self._epoch(step), event=event, **facts)
        self._log.say(f"── {event} at step {self.trainer.assignment.base_step + step}: {facts}")

    def _epoch(self, step: int) -> float:
        return self.trainer.updates.stream.epoch(step)


def memory_bytes() -> int:
    """Peak memory of the GPU where there is one, else the resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)
