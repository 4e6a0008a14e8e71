"""One job, top to bottom: model, data, Trainer, final evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PrinterCallback

from daemon.core.attempts import Assignment, Control, Evaluation, Exactness
from daemon.core.config import Settings
from daemon.core.errors import BadConfig, WorkerExit
from daemon.core.heartbeat import Heartbeat, Phase
from daemon.core.paths import Attempt, Workspace
from daemon.models import checkpoints
from daemon.worker import arithmetic, curves
from daemon.worker.arithmetic import LossScale
from daemon.worker.batches import Layout, Stream, TokenRows, Updates, derive_seed, pad
from daemon.worker.callbacks import Orders, Step
from daemon.worker.costs import Costs
from daemon.worker.evaluate import Holdout, aside, pad_id
from daemon.worker.examiner import Examiner
from daemon.worker.finite import Guard
from daemon.worker.loading import find_start, load_model, prepare_torch, why_inexact
from daemon.worker.log import Log
from daemon.worker.losses import TokenLosses
from daemon.worker.memory import OutOfMemory
from daemon.worker.packing import choose_layout
from daemon.worker.reporting import end_reports, name_run, quieten
from daemon.worker.saving import Saver
from daemon.worker.suites import Suites
from daemon.worker.trainer import JobTrainer, training_arguments


@dataclass(frozen=True)
class Result:
    """How an attempt ended by itself."""

    code: WorkerExit
    message: str
    checkpoint: Path | None
    job_step: int
    remedy: str | None = None


CALCULATION = ("numbers", "attention", "kernels", "compiled", "weights")  # facts of the line of the start
LESS_MEMORY = "lower max_length in config.json, or use training_method lora; then: training_queue retry"


def train(assignment: Assignment, attempt: Attempt, heartbeat: Heartbeat, orders: Orders) -> Result:
    """Train what the assignment says, from where it says, until the end or an order."""
    exactness = prepare_torch(Settings.model_validate(assignment.settings))
    order = orders.pending()
    if order and not (order.action == "keep" and assignment.resume):
        return _ended_early(order, assignment)
    training = Training(assignment, attempt, heartbeat, orders, exactness)
    try:
        training.run()
        return training.finish()
    except Exception:
        training.draw_curves()
        raise
    finally:
        training.saver.close()


class Training:
    """The parts of one job's training, made one after the other, and what is done with them."""

    def __init__(
        self, assignment: Assignment, attempt: Attempt, heartbeat: Heartbeat, orders: Orders, exactness: Exactness
    ) -> None:
        self._assignment, self._attempt, self._heartbeat, self._orders = assignment, attempt, heartbeat, orders
        self._workspace = Workspace(Path(assignment.workspace))
        self._settings = settings = Settings.model_validate(assignment.settings)
        asked = settings.micro_batch_rows
        self._micro_batch_rows = min(assignment.micro_batch_rows or asked, asked)
        self._start = find_start(assignment, self._workspace)
        # The stream's name: which data is trained at which step. The same lineage elsewhere has the same streams.
        at = assignment.base_step if assignment.stream_at is None else assignment.stream_at
        self._name = f"{assignment.data_sha256} at {at}"
        base = self._workspace.root / assignment.base_model
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._model = load_model(base, self._start.weights, settings, self._seed_for("adapter"))
        self._arithmetic = arithmetic.used(self._model, settings)
        self._rows = TokenRows(self._workspace.root / assignment.tokens)
        self._stream = Stream(
            len(self._rows), settings.num_train_epochs, settings.update_rows, settings.seed, self._name
        )
        assert self._stream.total_steps == assignment.total_steps, "daemon and worker count the updates alike"
        self._token_losses = TokenLosses()
        self._holdout = self._open_holdout()
        self._suites = Suites(assignment, settings, self._tokenizer, heartbeat, self._token_losses, attempt.stacks)
        self.saver = Saver(self._workspace, assignment, settings, heartbeat)
        self.saver.start_at(self._start.first_step)
        self.saver.examined = self._start.examined
        if before := self._start.manifest:
            self.saver.inexact = why_inexact(before, self._micro_batch_rows, self._arithmetic)
        self.saver.exactness = "statistical" if self.saver.inexact else exactness
        total = assignment.base_step + self._stream.total_steps
        self._log = Log(self._workspace.run(assignment.job), attempt.number, assignment.base_step, total)
        self._costs = Costs(self._workspace.monitoring_costs, assignment.job, attempt.number)
        self._out_of_memory: str | None = None  # in an update, in words
        self._step = self._make_step(orders)
        self._trainer = self._make_trainer()

    def run(self) -> None:
        """Train from the start to the end, or to an order."""
        self._lay_out()
        order, final = self._orders.pending(), self._start.final
        if final or (order and order.action == "keep"):  # all that this checkpoint lacks is its evaluation
            self._step.interrupted = None if final else order
            self._trainer.accelerator.prepare_model(self._model, evaluation_mode=True)  # onto its device
            self._trainer.state.global_step = self._start.first_step
        else:
            self._heartbeat.beat(Phase.TRAIN)
            try:
                self._trainer.train()
            except OutOfMemory as error:
                self._out_of_memory = str(error)
                self._step.save_beginning()

    def finish(self) -> Result:
        """The final evaluation, or the record of what interrupted the training."""
        result = self._finish()
        end_reports(self._trainer)
        return result

    def _finish(self) -> Result:
        job_step = self._trainer.state.global_step
        resumed = self._workspace.root / self._assignment.resume if self._assignment.resume else None
        folder = self.saver.saved or resumed
        if self._out_of_memory:
            said = f"{self._micro_batch_rows} rows at a time, in update {job_step + 1}: {self._out_of_memory}"
            return Result(WorkerExit.OUT_OF_MEMORY, said, folder, job_step, LESS_MEMORY)
        if order := self._step.interrupted:
            if order.action == "keep" and folder:
                self._evaluate(folder, job_step)
            saved = f"saved {folder.name}" if folder else "saved nothing"
            return Result(_code(order), f"{saved}; {order.action} was asked for: {order.reason}", folder, job_step)
        assert folder is not None, "the last step saves"
        self._evaluate(folder, job_step)
        how = f"stopped early, since {self._step.stopped_early}" if self._step.stopped_early else "trained to the end"
        return Result(WorkerExit.DONE, f"{how}; {folder.name} is final", folder, job_step)

    def _evaluate(self, folder: Path, job_step: int) -> None:
        """What the gate has to know of this checkpoint."""
        evaluation = self._step.evaluation.model_copy(update={"checkpoint": folder.name})
        if self._assignment.holdout:
            after, rows = self._step.evaluate_for_gate(job_step)
            evaluation = evaluation.model_copy(update={"after": after, "rows": rows})
        evaluation.save(self._attempt.evaluation)
        self.draw_curves()
        self._suites.leave(self._attempt, self._model, folder.name, self._orders, self._log.say)

    def draw_curves(self) -> None:
        """Pictures of the training so far."""
        curves.leave(self._workspace.run(self._assignment.job), self._assignment.file, self._log.say)

    # ---- parts ----

    def _seed_for(self, purpose: str) -> int:
        return derive_seed(self._settings.seed, self._name, purpose)

    def _open_holdout(self) -> Holdout | None:
        if not self._assignment.holdout:
            return None
        rows = TokenRows(self._workspace.root / self._assignment.holdout)
        return Holdout(
            rows,
            self._settings,
            self._tokenizer,
            self._heartbeat,
            self._token_losses,
            self._micro_batch_rows,
            self._attempt.stacks,
        )

    def _make_step(self, orders: Orders) -> Step:
        given = self._assignment
        return Step(
            log=self._log,
            orders=orders,
            saver=self.saver,
            examiner=self._make_examiner(),
            attempt=self._attempt,
            evaluation=Evaluation(holdout_key=given.holdout_key, rows=0, before=given.before, after=None),
            heartbeat=self._heartbeat,
            rng=self._start.rng,
            seed=self._seed_for(f"training from {given.first_step}" if given.first_step else "training"),
            losses=self._start.losses,
            costs=self._costs,
        )

    def _make_examiner(self) -> Examiner | None:
        if self._holdout is None:
            if self._settings.early_stopping_patience:
                remedy = "make one with: training_queue holdout FILE --rows N; or take the key out of config.json"
                raise BadConfig("early_stopping_patience looks at the loss on a holdout, and there is none.", remedy)
            return None
        because = self._assignment.no_generation_because
        return Examiner(self._holdout, self._settings, self._log, self.saver, self._costs, because)

    def _make_trainer(self) -> JobTrainer:
        run = self._workspace.run(self._assignment.job)
        name_run(run)
        try:
            arguments = training_arguments(
                self._settings, self._arithmetic, self._stream.total_steps, str(self._attempt.root), run
            )
        except (TypeError, ValueError, ImportError) as error:
            raise BadConfig(
                f"training_args are not accepted: {error}.", "correct training_args in config.json"
            ) from error
        rows_each, padding, left_out = self._micro_batch_rows, pad_id(self._tokenizer), self._assignment.left_out
        trainer = JobTrainer(
            model=self._model,
            args=arguments,
            tokenizer=self._tokenizer,
            callbacks=[self._step],
            updates=Updates(self._rows, self._stream, rows_each, padding, left_out=left_out),
            assignment=self._assignment,
            settings=self._settings,
            arithmetic=self._arithmetic,
            first_step=self._start.first_step,
            optimizer_state=self._start.optimizer,
            consumed=self._start.consumed,
            guard=Guard(self._start.skipped_updates, self._start.skipped_in_a_row),
            loss_scale=LossScale(self._arithmetic.numbers, self._start.loss_scale),
            token_losses=self._token_losses,
            heartbeat=self._heartbeat,
        )
        trainer.remove_callback(PrinterCallback)
        quieten(trainer, self._log)
        self._step.trainer = trainer
        return trainer

    def _lay_out(self) -> None:
        """Pack where the model keeps packed rows apart; a resumed job keeps the layout it began with."""
        layout, why = self._start.layout, "as the job began"
        flash = "flash" in str(self._arithmetic.attention)
        if flash:  # it knows no other numbers
            arithmetic.calculate_in(self._model, self._arithmetic.numbers)
        if layout is None or layout is (Layout.PACKED if flash else Layout.FLAT):  # another attention than before
            layout, why = choose_layout(
                self._model, self._rows, self._settings, pad_id(self._tokenizer), self._heartbeat
            )
        self._trainer.updates.layout = layout
        with aside(self._model, self._heartbeat, Phase.LOAD):
            self._token_losses.try_out(self._model, pad(self._rows, [0], pad_id(self._tokenizer)))
        if not flash:
            arithmetic.calculate_in(self._model, self._arithmetic.numbers)
        compiled = arithmetic.compile_layers(self._model, self._settings.training_args)
        facts = {
            "exactness": self.saver.exactness,
            "threads": torch.get_num_threads(),
            "layout": layout.value,
            **self._arithmetic.names(),
            "compiled": compiled,
            "weights": "four bits" if getattr(self._model, "is_loaded_in_4bit", False) else "float32",
        }
        reasons: dict[str, Any] = {"layout_reason": why, "all_logits_because": self._token_losses.all_logits_because}
        if self._micro_batch_rows < self._settings.micro_batch_rows:
            reasons |= {"micro_batch_rows": f"{self._micro_batch_rows} of {self._settings.micro_batch_rows}"}
            self._log.say(f"── {self._micro_batch_rows} rows at a time: more did not fit into memory")
        if self._assignment.rate_changes:
            reasons |= {"rate_changes": [change.model_dump() for change in self._assignment.rate_changes]}
            self._log.say(f"── the learning rate is changed: {reasons['rate_changes']}")
        if self._assignment.left_out:
            reasons |= {"left_out": list(self._assignment.left_out)}
            self._log.say(
                f"── left out, since they were twice in updates that were not finite: lines {reasons['left_out']}"
            )
        if self.saver.inexact:
            reasons |= {"inexact": self.saver.inexact}
            self._log.say(f"── goes on, but not bit for bit: {self.saver.inexact}")
        self._log.write("event", self._start.first_step, 0.0, event="started", **facts, **reasons)
        self._log.say(f"── rows are {layout.value}: {why}")
        self._log.say(f"── calculated in {', '.join(f'{name} {facts[name]}' for name in CALCULATION if facts[name])}")


def _ended_early(order: Control, assignment: Assignment) -> Result:
    if not assignment.resume:
        return Result(_code(order), "ended before its first step; there was nothing to save", None, 0)
    folder = Path(assignment.workspace) / assignment.resume
    manifest = checkpoints.read(folder)
    step = manifest.job_step if manifest else 0
    return Result(_code(order), f"ended before its next step; {folder.name} holds all", folder, step)


def _code(order: Control) -> WorkerExit:
    return WorkerExit.PAUSED if order.action == "pause" else WorkerExit.STOPPED
