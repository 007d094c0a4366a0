"""transformers' Trainer for one stage: sums over tokens, own log, guard and checkpoints.

Trainer keeps the loop, accumulation, learning rates, devices, trackers, and resuming of optimizer, data position and
random state (always with ``weights_only=True``). This class replaces the defaults that would hide a NaN, pickle the
arguments, or count half a checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments

from surgery.data import IGNORED, collate, draw_rows
from surgery.loading.model import recompute
from surgery.training.callbacks import StepCallback
from surgery.training.checkpointed_trainer import CheckpointedTrainer
from surgery.training.extension import Extension, ExtraTerms
from surgery.training.folder import TrainingFolder
from surgery.training.guard import DivergenceGuard
from surgery.training.held_out import Losses, document_losses, held_out_passes, mean_loss
from surgery.training.losses import within_forward
from surgery.training.options import Guard, TrainingOptions
from surgery.training.parameter_groups import MakeGroups, parameter_groups
from surgery.training.progress import Progress
from surgery.training.rows import RowDataset, StageRows
from surgery.training.sharding import average_gradients, is_sharded
from surgery.training.step_log import OnProgress, StepLog
from surgery.training.teacher import Teacher


class StageTrainer(CheckpointedTrainer):
    """One stage of a training.

    Args:
        model: prepared, with ``requires_grad`` on the parameters that this stage trains.
        arguments: from `training_arguments`; ``max_steps`` is final.
        options: of this stage.
        folder: of the run.
        rows: of this stage.
        stage: its number, from 0.
        before: progress of earlier stages.
        kept: names of the parameters in checkpoints: the trained parameters of all stages.
        total: steps of all stages, for events.
        teacher: gives targets, where the objective needs them.
        extensions: extra loss terms, schedules and numbers.
        groups: parameter groups of the optimizer, from the model and ``options.optimizer``.
        on_progress: called with events.
        callbacks: more of Trainer's callbacks.
    """

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        *,
        options: TrainingOptions,
        folder: TrainingFolder,
        rows: StageRows,
        stage: int = 0,
        before: Progress | None = None,
        kept: Iterable[str] | None = None,
        total: int | None = None,
        teacher: Teacher | None = None,
        extensions: Sequence[Extension] = (),
        groups: MakeGroups = parameter_groups,
        on_progress: OnProgress | None = None,
        callbacks: Iterable[TrainerCallback] = (),
    ) -> None:
        self.options, self.folder, self.rows, self.stage = options, folder, rows, stage
        self._teacher, self.extensions, self._groups = teacher, extensions, groups
        self._terms = ExtraTerms(extensions)
        self.steps_log = StepLog(folder, self._make_guard, stage, before, total, on_progress)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.kept = trained if kept is None else set(kept)
        self.rows_per_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        self.rows_per_step *= arguments.world_size
        count = arguments.max_steps * self.rows_per_step
        drawn = rows.stream or draw_rows(rows.train, rows.weights, count, options.seed + stage)
        self._scheduled: dict[str, float] = {}
        self.sharded = any(is_sharded(parameter) for parameter in model.parameters())
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=RowDataset(drawn, count),
            eval_dataset=RowDataset(rows.held_out, len(rows.held_out)) if rows.held_out else None,
            data_collator=partial(collate, pad=rows.pad),
            callbacks=[*callbacks, StepCallback(self)],
        )
        # Trainer would do it when training begins, which is after the trial step that needs the memory.
        recompute(self.module, options.gradient_checkpointing)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        # Losses are sums over the tokens of the whole step, divided once; Trainer then must count those tokens.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def _make_guard(self) -> DivergenceGuard:
        rising = any(extension.loss_may_rise for extension in self.extensions)
        options = Guard(steps=0) if rising else self.options.guard
        return DivergenceGuard(options, self.options.objective.least_rise, self._terms.names)

    # -------------------------------------------------------------------------------------------------- learning

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the parameter groups."""
        if self.optimizer is None:
            options = self.options.optimizer
            beta1, beta2 = options.betas
            groups = self._groups(model or self.module, options)
            self.optimizer = torch.optim.AdamW(groups, betas=(beta1, beta2), eps=options.epsilon)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The objective's sum divided by the predicted tokens of the whole step, across accumulation and processes."""
        tokens = (inputs["labels"][:, 1:] != IGNORED).sum()
        self._terms.begin_pass()
        # accelerate puts the model's forward alone under autocast, and some objectives call modules of the model.
        with self.accelerator.autocast():
            total = within_forward(
                model, inputs, lambda inner: self.options.objective.total(inner, inputs, self._teacher)
            )
        total = total + self._terms.extra_loss(tokens)
        loss = total / (tokens if num_items_in_batch is None else num_items_in_batch)
        loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One training step, which stops at a loss that is not finite, and counts tokens."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.sharded and self.accelerator.sync_gradients:
            average_gradients(model)
        if not torch.isfinite(loss):
            raise self.diverged(f"the loss became {loss.item()}")
        self.steps_log.add_tokens(int(self.accelerator.reduce(inputs["tokens"].sum().to(loss.device))))
        return loss

    def diverged(self, what: str) -> Exception:
        """The error for a loss or gradient that is not finite."""
        return self.steps_log.not_finite(self.step + 1, what)

    def set_scheduled(self) -> dict[str, float]:
        """Set what follows a schedule, for the step that comes next; after the last step, its last value."""
        found: dict[str, float] = {}
        for extension in self.extensions:
            found |= extension.set_parameters(self.state.global_step, self.args.max_steps)
        return found

    def begin_step(self) -> None:
        """Set what follows a schedule, and note it for the log."""
        self._scheduled = self.set_scheduled()

    def note_rates(self) -> None:
        """Remember the learning rates of the step that is about to be taken."""
        assert self.optimizer is not None
        self._rates_used = [group["lr"] for group in self.optimizer.param_groups]

    def start_clock(self) -> None:
        """Start the clock."""
        self.steps_log.start()

    # ------------------------------------------------------------------------------------------------- measuring

    def held_out_losses(self) -> Losses:
        """Next-token losses of each held-out document, for every objective; empty without held-out text."""
        with torch.random.fork_rng(devices=self.devices), self.accelerator.autocast():
            return self._document_losses(len(self.rows.held_out), self._tell_held_out)

    def _document_losses(self, count: int, on_rows: Callable[[int, int], None] | None = None) -> Losses:
        rows = self.rows.held_out[:count]
        size, device = self.options.batch.sequences, self.args.device
        return document_losses(self.module, rows, size=size, device=device, pad=self.rows.pad, on_rows=on_rows)

    def _tell_held_out(self, done: int, total: int) -> None:
        self.steps_log.tell({"event": "held_out", "done": done, "total": total})

    def held_out_seconds(self) -> float:
        """Estimated seconds of one measurement of the held-out rows, from some of them."""
        count = min(len(self.rows.held_out), 2 * self.options.batch.sequences)
        if not count:
            return 0.0
        started = time.perf_counter()
        self._document_losses(count)
        return (time.perf_counter() - started) * len(self.rows.held_out) / count

    @torch.no_grad()
    def held_out_numbers(self) -> dict[str, float]:
        """The numbers of the extensions on held-out rows."""
        was_training = self.module.training
        found: dict[str, float] = {}
        self.module.eval()
        with torch.random.fork_rng(devices=self.devices), self.accelerator.autocast():
            for extension in self.extensions:
                passes = held_out_passes(self.module, self.rows.held_out, self.args.device)
                found |= extension.held_out_numbers(passes)
        self.module.train(was_training)
        return found

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Held-out loss; logged, and reported to trackers."""
        loss = mean_loss(self.held_out_losses())
        if loss is None:
            return {}
        if not math.isfinite(loss):
            raise self.diverged(f"the held-out loss became {loss}")
        metrics = {"eval_loss": loss, **{f"eval_{name}": value for name, value in self.held_out_numbers().items()}}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A row of ``log.jsonl`` and an event for each step and each evaluation; trackers get the same numbers."""
        row = self.steps_log.new_row(self.state.global_step)
        if "loss" in logs:
            self._add_step(row, logs)
        elif "eval_loss" in logs:
            row |= {f"held_out_{key.removeprefix('eval_')}": logs[key] for key in logs if key.startswith("eval_")}
        else:
            row = {}  # Trainer's own summary at the end
        if row and self.is_world_process_zero():
            done = self.state.global_step - self._initial_global_step if "loss" in row else 0
            self.steps_log.write(row, steps=self.args.max_steps, done=done)
        if "loss" in row and self.steps_log.guard.add_row(row):
            raise self.steps_log.risen(self.step, self.options.guard.steps, delete=self.is_world_process_zero())
        super().log(logs, start_time)

    def _add_step(self, row: dict[str, Any], logs: dict[str, float]) -> None:
        """Loss, rates and numbers of a step; extra loss terms are separate, and not in the loss."""
        assert self.optimizer is not None
        groups = self.optimizer.param_groups
        # Trainer logs after the schedule's step; the rate that was used is the one before it.
        rates = {group["name"]: rate for group, rate in zip(groups, self._rates_used, strict=True)}
        row |= {"loss": logs["loss"], "learning_rates": rates, "grad_norm": float(logs["grad_norm"])}
        for extension in self.extensions:
            row |= extension.numbers()
        row |= self._scheduled
        logs.update({f"learning_rate_{name}": rate for name, rate in rates.items()})
        found = self._terms.step_means(self.accelerator.reduce)
        row |= found
        logs.update(found)
        for name in self._terms.names:
            row["loss"] = logs["loss"] = logs["loss"] - found.get(name, 0.0)

    @property
    def devices(self) -> list[torch.device]:
        """The devices with a random state of their own."""
        device = self.args.device
        return [device] if device.type == "cuda" else []
