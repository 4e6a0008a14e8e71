"""What happens between two updates: watch the numbers, show an example, evaluate, save, obey."""

import math
import signal
import time
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from daemon.core import files, room
from daemon.core.attempts import Control, Evaluation
from daemon.core.heartbeat import Heartbeat
from daemon.core.paths import Attempt, Run
from daemon.core.records import now
from daemon.worker.evaluate import THINK_TAG, WATCH_ROWS, Holdout, readable, seed_everything, set_rng_states, split
from daemon.worker.saving import Saved, Saver
from daemon.worker.tally import Tally
from daemon.worker.trainer import JobTrainer


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


class Log:
    """The run's log.jsonl, and the same for people in worker.log (standard output)."""

    def __init__(self, run: Run, attempt: int, base_step: int, total_steps: int) -> None:
        self._path = run.log
        self._attempt, self._base_step, self._total_steps = attempt, base_step, total_steps
        self._lost = 0  # lines that a full disk did not take

    def write(self, kind: str, job_step: int, epoch: float, **facts: Any) -> None:
        """Add a line. One that the disk does not take is lost, and that is said later: training does not end for it."""
        try:
            if self._lost:
                self._append("event", job_step, epoch, event="lines_lost", lines=self._lost)
                self._lost = 0
            self._append(kind, job_step, epoch, **facts)
        except OSError as error:
            if room.refusal(error) is None:
                raise
            self._lost += 1

    def _append(self, kind: str, job_step: int, epoch: float, **facts: Any) -> None:
        line = {
            "kind": kind,
            "time": now(),
            "attempt": self._attempt,
            "step": self._base_step + job_step,
            "job_step": job_step,
            "total_steps": self._total_steps,
            "epoch": round(epoch, 4),
            **facts,
        }
        files.append_json(self._path, strict(line), durable=False)

    def say(self, text: str) -> None:
        print(text, flush=True)


class Step(TrainerCallback):
    """The one callback: its `on_step_end` is the table of contents of what happens between two updates."""

    def __init__(
        self,
        *,
        log: Log,
        orders: Orders,
        saver: Saver,
        holdout: Holdout | None,
        attempt: Attempt,
        evaluation: Evaluation,
        heartbeat: Heartbeat,
        rng: dict[str, Any] | None,
        seed: int,
        losses: list[float],
    ) -> None:
        self.trainer: JobTrainer  # set by the trainer's owner, which needs the callback first
        self.interrupted: Control | None = None
        self.evaluation = evaluation
        self._log, self._orders, self._saver, self._holdout = log, orders, saver, holdout
        self._attempt, self._heartbeat = attempt, heartbeat
        self._rng, self._seed = rng, seed
        self._losses = list(losses)
        self._rate = 0.0
        self._tokens, self._since, self._steps = 0, time.monotonic(), 0
        self._tally = Tally()

    # ---- Hugging Face's events ----

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._holdout and self.evaluation.before is None and self._rng is None:  # at a job's beginning
            rows = self._holdout.rows_for_gate()
            before = self.evaluate(self.trainer.first_step, rows)
            self.evaluation = self.evaluation.model_copy(update={"before": before, "rows": rows})
            self.evaluation.save(self._attempt.evaluation)
        self._since = time.monotonic()

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
        last = step >= state.max_steps
        self._heartbeat.beat(job_step=step)
        self._count()
        if step % settings.logging_steps == 0 or last:
            self._log_numbers(step)
        if self._holdout and step % settings.eval_steps == 0 and not last:
            self.evaluate(step, WATCH_ROWS)
        order = None if last else self._orders.pending()
        dropped = order is not None and order.action == "drop"
        if step == self.trainer.first_step + 1:
            self._saver.prepare(self.trainer)
        self._note(self._saver.settle(wait=False))
        if not dropped and (last or order or self._saver.due(step)):
            self.save(final=last, wait=last or order is not None)
        if order:
            self.interrupted = order
            control.should_training_stop = True

    # ---- deeds ----

    def save(self, *, final: bool, wait: bool) -> None:
        self._event(self.trainer.state.global_step, "saving", final=final)
        self._settle()
        self._note(self._saver.save(self.trainer, self._losses, final=final, wait=wait))

    def _note(self, ended: list[Saved]) -> None:
        for saved in ended:
            facts = {"final": saved.final, "aside": saved.aside, "waits_because": self._saver.waits_because}
            times = {"seconds": round(saved.seconds, 3), "stall_seconds": round(saved.stall_seconds, 3)}
            self._event(saved.step, "saved", checkpoint=saved.folder.name, **facts, **times)

    def evaluate(self, step: int, rows: int) -> float:
        """Measure, write it down, show what the model answers; the loss a trained token on so many holdout rows."""
        assert self._holdout is not None
        model = self.trainer.language_model
        self._settle()
        loss = self._holdout.loss(model, rows)
        examples, timed_out = self._holdout.examples(model)
        outputs = [e["model_output"] for e in examples if e["model_output"] is not None]
        matches = [e["match"] for e in examples if e["match"] is not None]
        gap = loss - self.recent_loss if self._losses or step > self.trainer.first_step else None
        self._log.write(
            "eval",
            step,
            self._epoch(step),
            validation_loss=loss,
            validation_rows=self._holdout.count(rows),
            val_train_gap=gap,
            accuracy_percent=percent(sum(matches), len(matches)),
            think_tag_percent=percent(sum(THINK_TAG in o for o in outputs), len(outputs)),
            generation_timeouts=int(timed_out),
            examples=[{"step": self.trainer.assignment.base_step + step, **e} for e in examples],
        )
        self._log.say(f"── evaluation at step {self.trainer.assignment.base_step + step} · validation loss {loss:.4f}")
        for e in examples:
            mark = {True: "✓", False: "✗", None: "? (timed out)"}[e["match"]]
            self._log.say(f"  {mark} {e['prompt']}\n    golden {e['golden_answer']}\n    model  {e['model_output']}")
        return loss

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
            else:
                self._losses.append(update.loss)

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
            f"step {example['step']} · {step}/{len(self.trainer.updates)} of this file · epoch {self._epoch(step):.2f}"
            f" · loss {loss:.4f} · grad {norm:.2f} · rate {self._rate:.2e} · {speed:,.0f} tokens/s\n"
            f"  prompt {example['prompt']}\n  golden {example['golden_answer']}\n  loss   {example['loss']:.4f}"
        )
        self._losses, self._tokens, self._steps, self._since = [], 0, 0, time.monotonic()

    def _example(self, step: int) -> dict[str, Any]:
        assert self.trainer.example is not None
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
        stream = self.trainer.updates.stream
        return min(step * stream.update_rows, stream.total_rows) / stream.rows


def percent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 1) if whole else None


def memory_bytes() -> int:
    """Peak memory of the GPU where there is one, else the resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)


def strict(value: Any) -> Any:
    """Numbers that JSON does not know, as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {k: strict(v) for k, v in value.items()}
    return [strict(v) for v in value] if isinstance(value, list) else value
