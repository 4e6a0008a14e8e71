"""The Trainer subclass: one update a batch, a flat stream with an offset, the rate a function of the global step."""

import traceback
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.optimization import get_scheduler

from daemon.core.attempts import Assignment, RateChange
from daemon.core.config import Settings
from daemon.core.heartbeat import Heartbeat, Phase
from daemon.core.paths import Run
from daemon.worker.arithmetic import COMPILING, Arithmetic, LossScale
from daemon.worker.batches import FromStep, Updates
from daemon.worker.evaluate import rng_states, set_rng_states
from daemon.worker.finite import Guard, Update
from daemon.worker.losses import TokenLosses
from daemon.worker.memory import OutOfMemory, is_exhausted


class JobTrainer(Trainer):
    """Trains one job with local steps.

    Hugging Face's loop sees one batch an update; the micro-batches are inside it. So an update is a fixed set of rows
    whatever the micro-batch, the last one of a file may be smaller, and resuming is an offset into the updates.
    """

    def __init__(
        self,
        *,
        updates: Updates,
        assignment: Assignment,
        settings: Settings,
        arithmetic: Arithmetic,
        first_step: int,
        optimizer_state: dict[str, Any] | None,
        consumed: bytes,
        guard: Guard,
        loss_scale: LossScale,
        token_losses: TokenLosses,
        heartbeat: Heartbeat,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        **kwargs: Any,
    ) -> None:
        self.language_model, self.tokenizer = model, tokenizer  # the same objects as Trainer's, with their types
        self.updates, self.assignment, self.settings, self.arithmetic = updates, assignment, settings, arithmetic
        self.first_step, self.token_losses, self.heartbeat = first_step, token_losses, heartbeat
        self._optimizer_state = optimizer_state
        self.update_loss = torch.zeros(())  # mean loss a trained token of the running update
        self.update_rows: list[int] = []
        self.update_tokens = 0
        self.example: tuple[int, torch.Tensor] | None = None  # row and loss of the update's first row
        self.grad_norm: torch.Tensor | float = 0.0
        self.consumed = bytearray(consumed)  # as consumed.bin: the lines of the rows that the weights contain
        self.guard, self.loss_scale = guard, loss_scale
        self.beginning = rng_states()  # of the update that was begun last
        super().__init__(model=model, processing_class=tokenizer, train_dataset=updates, **kwargs)
        self._stretching: list[Any] = [
            module for module in model.modules() if getattr(module, "rope_type", None) == "dynamic"
        ]

    # ---- what is trained, in which order ----

    def get_train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        loader = DataLoader(
            self.updates,
            batch_size=1,
            sampler=FromStep(self.first_step, len(self.updates)),
            collate_fn=_only,
            num_workers=0,
        )
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def _init_training_state(self, *args: Any) -> tuple[int, int]:
        result: tuple[int, int] = super()._init_training_state(*args)
        self.state.global_step = self.first_step
        return result

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of one whole update; its mean loss a trained token. Raises OutOfMemory."""
        self.beginning = rng_states()
        try:
            while not self.loss_scale.unscale(model.parameters(), loss := self._learn(model, inputs)):
                self.abandon_update()  # a gradient did not fit into float16
            return loss
        except (RuntimeError, MemoryError) as error:
            if not is_exhausted(error):
                raise
            traceback.print_exc()
            said = str(error).split("\n")[0]
        # Outside of the handler: the error is gone, and with it all that the update held.
        raise OutOfMemory(said)

    def abandon_update(self) -> None:
        """Be where the update that was begun last began: no gradients, random generators as they were."""
        self.language_model.zero_grad(set_to_none=True)
        set_rng_states(self.beginning)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _learn(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """Micro-batch by micro-batch."""
        model.train()
        self._forget_lengths()
        self.update_rows, self.update_tokens = inputs["rows"], inputs["tokens"]
        self.update_loss = torch.zeros((), device=self.args.device)
        example = inputs["example"]
        for batch in inputs["micro_batches"]:
            with self.compute_loss_context_manager():
                losses = self.token_losses(model, batch)
            loss = losses.sum() / max(inputs["trained_tokens"], 1)
            self.accelerator.backward(loss * self.loss_scale.factor)
            self.update_loss += loss.detach()
            if example is not None:
                self.example = (example, losses[: self.updates.rows.trained_tokens(example)].detach().mean())
                example = None
            self.heartbeat.beat(Phase.TRAIN, micro_batches=1, tokens=batch["labels"].numel())
        return self.update_loss

    def _forget_lengths(self) -> None:
        """Positions that stretch with the longest text seen begin anew: no checkpoint and no evaluation knows of it."""
        for module in self._stretching:
            original = module.original_inv_freq.to(module.inv_freq.device)
            module.register_buffer("inv_freq", original, persistent=False)
            module.max_seq_len_cached = module.original_max_seq_len

    def admit(self, step: int) -> None:
        """Let the update that was just calculated into the weights, or keep it out."""
        assert self.optimizer is not None, "there is no step without one"
        inner = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate's has it inside
        lines = [int(line) for line in self.updates.rows.lines[self.update_rows]]
        self.guard.admit(inner, step, lines, self.update_loss, self.grad_norm)

    def settle(self) -> list[Update]:
        """What became of the updates since the last call; the rows of those in the weights are noted as consumed."""
        updates = self.guard.settle()
        for update in updates:
            if not update.skipped:
                self.consumed += np.array(update.lines, dtype="<u4").tobytes()
        return updates

    def report(self, **figures: float | None) -> None:
        """Tell the programs that `report_to` names."""
        if self.args.report_to:
            self.log({name: figure for name, figure in figures.items() if figure is not None})
            self.state.log_history.clear()  # log.jsonl has it all

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        self.grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        return self.grad_norm

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the estimate of Hugging Face expects one batch of tensors; ours is a whole update

    # ---- optimizer and rate carry over from file to file ----

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if self._optimizer_state is not None:
            # Moments of the accepted model; hyperparameters of today's settings.
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": self._optimizer_state["state"], "param_groups": groups})
            self._optimizer_state = None
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        optimizer = optimizer or self.optimizer
        assert optimizer is not None, "created before the scheduler"
        factor = rate_factor(self.settings, num_training_steps)
        changed = rate_changes(self.assignment.rate_changes)
        start = self.first_step + (self.assignment.base_step if self.settings.lr_schedule_scope == "lineage" else 0)
        self.lr_scheduler = LambdaLR(optimizer, lambda steps: factor(start + steps) * changed(self.first_step + steps))
        return self.lr_scheduler


def rate_factor(settings: Settings, total_steps: int) -> Callable[[int], float]:
    """The share of the full learning rate, from Hugging Face's own schedules, as a function of the step alone.

    The step is the global one in a lineage's schedule, and the job's own in a job's schedule.
    """
    one = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    kwargs = settings.training_args.get("lr_scheduler_kwargs")
    scheduler = get_scheduler(
        settings.lr_scheduler_type, one, settings.warmup_steps, total_steps, scheduler_specific_kwargs=kwargs
    )
    return scheduler.lr_lambdas[0]  # type: ignore[no-any-return]


def rate_changes(changes: Iterable[RateChange]) -> Callable[[int], float]:
    """The share of the rate that is left for the update behind so many updates of the job."""
    newest_first = sorted(changes, key=lambda change: change.from_step, reverse=True)
    return lambda steps: next((change.factor for change in newest_first if change.from_step <= steps), 1.0)


def training_arguments(
    settings: Settings, arithmetic: Arithmetic, total_steps: int, folder: str, run: Run
) -> TrainingArguments:
    """TrainingArguments of one job: the user's own, under those that the daemon decides."""
    given = {
        "use_cpu": not torch.cuda.is_available(),
        "run_name": run.root.name,
        # Logits are calculated only where there is a label, outside of the model's own loss.
        "liger_kernel_config": {"cross_entropy": False, "fused_linear_cross_entropy": False},
        **settings.training_args,
        "use_liger_kernel": arithmetic.kernels == "liger",
    }
    for done_elsewhere in ("lr_scheduler_kwargs", "bf16", "fp16", *COMPILING):
        given.pop(done_elsewhere, None)
    return TrainingArguments(
        **given,
        output_dir=folder,
        max_steps=total_steps,
        learning_rate=settings.rate,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        seed=settings.seed,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )


def _only(batch: list[dict[str, Any]]) -> dict[str, Any]:
    return batch[0]
