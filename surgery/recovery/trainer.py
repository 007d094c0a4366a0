"""transformers' Trainer with our parameter groups, objective, log, guards and checkpoints.

What Trainer does well stays: the loop, accumulation, schedules, devices, trackers, and resuming optimizer, schedule,
data position and random state (always with ``weights_only=True``). Ours are the parts where its defaults would decay s,
hide a NaN, pickle its arguments, or count half a checkpoint.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import is_torch_bf16_gpu_available

from surgery.checkpoint import write_json
from surgery.data import IGNORED, Row, collate, draw_rows
from surgery.data.stream import RowStream, StreamSnapshot
from surgery.errors import SurgeryError, UsageError
from surgery.loading.model import recompute
from surgery.recovery.errors import DivergedError
from surgery.recovery.guard import DivergenceGuard
from surgery.recovery.measuring import Losses, document_losses, mean_loss, rejected_share
from surgery.recovery.objectives import Teacher, inside, objective_sum
from surgery.recovery.packed import parameters_beside
from surgery.recovery.preparing import Layout, operation_parameters, optimizer_groups, put
from surgery.recovery.processes import any_process
from surgery.recovery.recipe import Recipe
from surgery.recovery.sharding import average_gradients, is_sharded, load_state, whole, whole_state
from surgery.recovery.sparsity import RejectedShare, penalty, set_scheduled
from surgery.recovery.state import STREAM_NAME, Progress, TrainingFolder, mark_complete, progress_of

_SMALLER = "Try a smaller optimizer.scale_lr or optimizer.lr, a longer warmup, or a smaller clip."
OnProgress = Callable[[dict[str, Any]], None]
TRAINED_NAME = "trained.safetensors"


class Rows(torch.utils.data.Dataset[Row]):
    """So many rows as a dataset, from a list or a stream, which are asked for in their order."""

    def __init__(self, rows: Sequence[Row] | RowStream, count: int) -> None:
        self._rows, self._count = rows, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> Row:
        return self._rows[position]


def training_arguments(recipe: Recipe, folder: Path, steps: int, device: str, stage: int = 0) -> TrainingArguments:
    """The recipe of a stage in Trainer's words.

    Raises:
        UsageError: the device is one that Trainer cannot be told to use; a tracker is not installed.
    """
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise UsageError(
            f"--device {device}: training runs on auto, cpu, cuda or mps.",
            hint="CUDA_VISIBLE_DEVICES chooses one of several GPUs.",
        )
    from surgery.loading import pick_device

    on_cpu = pick_device(device).type == "cpu"
    if recipe.precision == "bfloat16-mixed" and not on_cpu and not is_torch_bf16_gpu_available():
        raise UsageError(
            "precision bfloat16-mixed: this device has no bfloat16.", hint="Set precision to float32, or --device cpu."
        )
    _check_trackers(recipe.report_to)
    optimizer = recipe.optimizer
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=on_cpu,
        max_steps=steps,
        per_device_train_batch_size=recipe.batch.sequences,
        gradient_accumulation_steps=recipe.batch.accumulation,
        lr_scheduler_type="constant_with_warmup" if optimizer.schedule == "constant" else optimizer.schedule,
        warmup_steps=optimizer.warmup,
        max_grad_norm=optimizer.clip,
        bf16=recipe.precision == "bfloat16-mixed",
        seed=recipe.seed + stage,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would replace a NaN by the average
        eval_strategy="steps" if recipe.evaluation.every else "no",
        eval_steps=recipe.evaluation.every or None,
        save_strategy="steps",
        save_steps=recipe.checkpoints.every,
        save_total_limit=None,  # rotated by us, after the marker
        report_to=list(recipe.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu and torch.cuda.is_available(),
        optim="adamw_torch",
    )
    # Several GPUs in one process would mean DataParallel; `torchrun` is the way to use them.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _check_trackers(names: Sequence[str]) -> None:
    from transformers.integrations import get_available_reporting_integrations

    available = get_available_reporting_integrations()
    missing = [name for name in names if name not in available]
    if missing:
        raise UsageError(
            f"report_to: {missing[0]!r} is not a tracker that is installed here.",
            hint=f"Installed: {', '.join(available) or 'none'}. The local log.jsonl is always written.",
        )


class RecoveryTrainer(Trainer):
    """One stage of a recovery run.

    Args:
        model: prepared, with what this stage trains switched on.
        arguments: from `training_arguments`; ``max_steps`` is final.
        recipe: of this stage.
        layout: of the model.
        folder: of the run.
        train: rows of each source.
        weights: of the sources, by tokens.
        held_out: rows to measure on.
        stream: of rows, where they are not all at hand; ``train`` then has the first ones.
        pad: token id that fills rows up.
        stage: its number.
        before: what earlier stages did.
        kept: names of the parameters that checkpoints hold: what any stage trains.
        total: steps of all stages, for events.
        teacher: a second copy of the original, where the trained weights themselves cannot teach.
        on_progress: called with events.
        callbacks: more of them.
    """

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        *,
        recipe: Recipe,
        layout: Layout,
        folder: TrainingFolder,
        train: Sequence[Sequence[Row]],
        held_out: Sequence[Row],
        weights: Sequence[float] = (1.0,),
        stream: RowStream | None = None,
        pad: int = 0,
        stage: int = 0,
        before: Progress | None = None,
        kept: Sequence[str] | None = None,
        total: int | None = None,
        teacher: Teacher | None = None,
        on_progress: OnProgress | None = None,
        callbacks: Iterable[TrainerCallback] = (),
    ) -> None:
        self._recipe = recipe
        self._layout = layout
        self._folder = folder
        self._held_out = held_out
        self._pad = pad
        self._stage = stage
        self._offset = before.step if before else 0
        self._teacher = teacher
        self._total = total
        self._guard = DivergenceGuard.of(recipe)
        self._on_progress = on_progress
        self.tokens_seen = before.tokens if before else 0
        self._seconds_before = before.seconds if before else 0.0
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._kept = trained if kept is None else set(kept)
        self._per_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        self._per_step *= arguments.world_size
        count = arguments.max_steps * self._per_step
        self._stream = stream
        drawn = draw_rows(train, weights, count, recipe.seed + stage) if stream is None else stream
        self._rows = Rows(drawn, count)
        self._longest = max((row for source in train for row in source), key=lambda row: row.tokens)
        self._started = time.monotonic()
        self._fresh_tokens = 0
        self._rejected = RejectedShare(model, layout)
        # Sums over the step: tokens, and times them the price of sparsity and the share of rejected keys.
        self._counted: torch.Tensor | None = None
        self._scheduled: dict[str, float] = {}
        self._sharded = any(is_sharded(parameter) for parameter in model.parameters())
        self._to_save: dict[str, torch.Tensor] = {}
        with parameters_beside(model):
            super().__init__(
                model=model,
                args=arguments,
                train_dataset=self._rows,
                eval_dataset=Rows(held_out, len(held_out)) if held_out else None,
                data_collator=partial(collate, pad=pad),
                callbacks=list(callbacks),
            )
        # Trainer would do it when training begins, which is after the trial step that needs the memory.
        recompute(self.module, recipe.gradient_checkpointing)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        # Our losses are sums over the tokens of the whole step, divided once; Trainer then must count those tokens.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    @property
    def module(self) -> nn.Module:
        """The model that is trained, unwrapped."""
        assert self.model is not None
        return self.model

    # -------------------------------------------------------------------------------------------------- learning

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The rows come in the order in which they were drawn."""
        return torch.utils.data.SequentialSampler(self._rows)

    def _wrap_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        """A sharded model reduces its own gradients: accelerate prepares it as for an evaluation, and does no more."""
        if self._sharded:
            self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        wrapped: nn.Module = super()._wrap_model(model, *args, **kwargs)
        return wrapped

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over `optimizer_groups`."""
        if self.optimizer is None:
            options = self._recipe.optimizer
            beta1, beta2 = options.betas
            self.optimizer = torch.optim.AdamW(
                optimizer_groups(model or self.module, options), betas=(beta1, beta2), eps=options.epsilon
            )
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The objective's sum divided by the predicted tokens of the whole step, across accumulation and processes."""
        if num_items_in_batch is None:
            num_items_in_batch = (inputs["labels"][:, 1:] != IGNORED).sum()
        objective, teacher = self._recipe.objective, self._teacher
        self._rejected.clear()
        # accelerate puts the model's forward alone under autocast, and `match` calls attention modules.
        with self.accelerator.autocast():
            total = inside(model, inputs, lambda inner: objective_sum(objective, inner, inputs, teacher))
        total = total + self._price(inputs)
        loss = total / num_items_in_batch
        loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def _price(self, inputs: dict[str, Any]) -> torch.Tensor | float:
        """What the recipe's sparsity adds to the sum over the predicted tokens of a batch."""
        share = self._rejected.share()
        if share is None:
            return 0.0
        tokens = (inputs["labels"][:, 1:] != IGNORED).sum()
        options = self._recipe.sparsity
        price = tokens * (share.new_zeros(()) if options is None else penalty(options, share))
        counted = torch.stack([tokens.to(share.dtype), price.detach(), tokens * share.detach()])
        self._counted = counted if self._counted is None else self._counted + counted
        return price

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """As Trainer's, but stops at a loss that is no finite number, and counts tokens."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._sharded and self.accelerator.sync_gradients:
            average_gradients(model)
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss became {loss.item()}")
        tokens = int(self.accelerator.reduce(inputs["tokens"].sum().to(loss.device)))
        self.tokens_seen += tokens
        self._fresh_tokens += tokens
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = whole(super()._get_grad_norm(model, grad_norm))
        if not math.isfinite(float(norm)):
            raise self._diverged(f"the gradient's norm became {float(norm)}")
        return norm

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"Step {self.step + 1}: {what}. Training was stopped before the weights were touched.",
            hint=f"{self._kept_checkpoint()} {_SMALLER}",
        )

    def _risen(self) -> DivergedError:
        """The loss has stayed up: what was saved since it rose goes, so that the last checkpoint is a good one."""
        since, limit = self._guard.since, self._guard.limit
        assert since is not None and limit is not None
        if self.is_world_process_zero():
            self._folder.delete_from(since)
        return DivergedError(
            f"Step {self.step}: the loss has been above {limit:.4f} since step {since}, after a lowest mean of "
            f"{self._guard.lowest:.4f} over {self._recipe.guard.steps} steps. Training was stopped.",
            hint=f"{self._kept_checkpoint()} {_SMALLER} guard.rise and guard.steps say how much is borne.",
        )

    def _kept_checkpoint(self) -> str:
        last = self._folder.last_complete()
        if last is None:
            return "No checkpoint had been saved yet."
        place = last.relative_to(self._folder.output.parent)
        return f"The last good checkpoint is {place}, and --resume goes on from it."

    # ------------------------------------------------------------------------------------------------- measuring

    def held_out_losses(self) -> Losses:
        """Next-token losses of each held-out document, whatever the objective; empty without any."""
        with torch.random.fork_rng(devices=self._devices()), self.accelerator.autocast():
            return document_losses(
                self.module,
                self._held_out,
                size=self._recipe.batch.sequences,
                device=self.args.device,
                pad=self._pad,
            )

    def held_out_seconds(self) -> float:
        """How long one measurement of the held-out rows takes, from some of them."""
        some = self._held_out[: 2 * self._recipe.batch.sequences]
        if not some:
            return 0.0
        started = time.perf_counter()
        document_losses(self.module, some, size=self._recipe.batch.sequences, device=self.args.device, pad=self._pad)
        return (time.perf_counter() - started) * len(self._held_out) / len(some)

    def held_out_rejected(self) -> float | None:
        """Share of the held-out keys that screening rejects, from a sample; None without screening."""
        with torch.random.fork_rng(devices=self._devices()), self.accelerator.autocast():
            return rejected_share(self.module, self._held_out, device=self.args.device)

    def held_out_loss(self) -> float | None:
        """Mean of them; None without any."""
        return mean_loss(self.held_out_losses())

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Held-out loss; logged, and reported to trackers."""
        loss = self.held_out_loss()
        if loss is None:
            return {}
        if not math.isfinite(loss):
            raise self._diverged(f"the held-out loss became {loss}")
        metrics = {"eval_loss": loss}
        rejected = self.held_out_rejected()
        if rejected is not None:
            metrics["eval_rejected"] = rejected
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --------------------------------------------------------------------------------------------------- logging

    @property
    def step(self) -> int:
        """Steps taken, those of earlier stages included."""
        return self._offset + self.state.global_step

    @property
    def seconds(self) -> float:
        """Time spent training, earlier parts of a resumed run included."""
        return self._seconds_before + time.monotonic() - self._started

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A row of ``log.jsonl`` and an event for each step and each evaluation; trackers get the same numbers."""
        row: dict[str, Any] = {"step": self.step, "tokens": self.tokens_seen}
        if self._stage:
            row["stage"] = self._stage + 1
        if "loss" in logs:
            assert self.optimizer is not None
            groups = self.optimizer.param_groups
            # Trainer logs after the schedule's step; the rate that was used is the one before it.
            rates = {group["name"]: rate for group, rate in zip(groups, self._rates_used, strict=True)}
            row |= {"loss": logs["loss"], "learning_rates": rates, "grad_norm": float(logs["grad_norm"])}
            row["scale"] = self.scale_by_layer()
            row |= self._scheduled
            logs.update({f"learning_rate_{name}": rate for name, rate in rates.items()})
            self._log_rejected(row, logs)
        elif "eval_loss" in logs:
            row["held_out_loss"] = logs["eval_loss"]
            if "eval_rejected" in logs:
                row["held_out_rejected"] = logs["eval_rejected"]
        else:
            row = {}  # Trainer's own summary at the end
        if row and self.is_world_process_zero():
            row["seconds"] = round(self.seconds, 3)
            self._folder.append(row)
            self._tell(row)
        if "loss" in row and self._guard.add_row(row):
            raise self._risen()
        super().log(logs, start_time)

    def _log_rejected(self, row: dict[str, Any], logs: dict[str, float]) -> None:
        """The share of rejected keys in this step's text; the price of sparsity by itself, and not in the loss."""
        if self._counted is None:
            return
        tokens, price, share = self.accelerator.reduce(self._counted).tolist()
        self._counted = None
        row["rejected"] = logs["rejected"] = share / tokens
        if self._recipe.sparsity is not None:
            row["sparsity"] = logs["sparsity"] = price / tokens
            row["loss"] = logs["loss"] = logs["loss"] - price / tokens

    def set_scheduled(self) -> dict[str, float]:
        """What goes by a schedule of ours, for the step that comes next; the last value after the last."""
        return set_scheduled(self.module, self._layout, self._recipe, self.state.global_step, self.args.max_steps)

    def begin_step(self) -> None:
        """Set what goes by a schedule of ours, and note it for the log."""
        self._scheduled = self.set_scheduled()

    def note_rates(self) -> None:
        """Remember the learning rates of the step that is about to be taken."""
        assert self.optimizer is not None
        self._rates_used = [group["lr"] for group in self.optimizer.param_groups]

    def scale_by_layer(self) -> dict[str, dict[str, list[float]]]:
        """Mean, least and greatest value over heads of each trained parameter of the operation, by layer."""
        found: dict[str, dict[str, list[float]]] = {}
        for name, parameter in operation_parameters(self.module).items():
            values = whole(parameter.detach()).float()
            numbers = [values.mean().item(), values.min().item(), values.max().item()]
            layer = str(self._layout.layer(name))
            found.setdefault(name.rpartition(".")[2], {})[layer] = [round(number, 7) for number in numbers]
        return found

    def _tell(self, row: dict[str, Any]) -> None:
        if self._on_progress is None:
            return
        fresh = time.monotonic() - self._started
        rate = self._fresh_tokens / fresh if fresh > 0 else 0.0
        done = self.state.global_step - self._initial_global_step if "loss" in row else 0
        left = (self._total or self._offset + self.state.max_steps) - self.step
        self._on_progress(
            {
                "event": "step" if "loss" in row else "evaluation",
                "steps": self._total or self._offset + self.args.max_steps,
                "tokens_per_second": round(rate, 1),
                "seconds_left": round(left * fresh / done, 1) if done else None,
                **row,
            }
        )

    # ----------------------------------------------------------------------------------------------- checkpoints

    def trained_tensors(self) -> dict[str, torch.Tensor]:
        """Every parameter that any stage trains, on the CPU, by its name in the model that is trained.

        Of sharded ones all processes must ask, and the first one gets them.
        """
        found = {}
        for name, parameter in self.module.named_parameters():
            if name in self._kept:
                tensor = whole(parameter.detach())
                if not self._sharded or self.is_world_process_zero():
                    found[name] = tensor.to("cpu").contiguous()
        return found

    def load_trained(self, checkpoint: Path) -> None:
        """Put the trained parameters of a checkpoint into the model; all of them, no others."""
        saved = load_file(checkpoint / TRAINED_NAME)
        names = {name for name, _ in self.module.named_parameters() if name in self._kept}
        if saved.keys() != names:
            different = sorted(saved.keys() ^ names)
            raise SurgeryError(f"{checkpoint.name} does not fit the model: {', '.join(different[:4])}.")
        put(self.module, saved)

    def trial(self, length: int) -> None:
        """One forward and backward pass at full length, and one save, before anything is spent.

        Leaves weights and random state as they were.

        Raises:
            SurgeryError: a parameter of the operation gets no gradient, or what was saved does not read back.
            DivergedError: the loss is not finite.
        """
        tokens = [token for document in self._longest.documents for token in document]
        full = Row((tuple(tokens[position % len(tokens)] for position in range(length)),))
        with torch.random.fork_rng(devices=self._devices()):
            batch = collate([full] * self._recipe.batch.sequences, self._pad)
            self.module.train()
            self.accelerator.gradient_state._set_sync_gradients(True)
            inputs = self._prepare_inputs(batch)
            loss = self.compute_loss(self.module, inputs)
            if loss.requires_grad:
                loss.backward()
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss of the trial step is {loss.item()}")
        without = [name for name, parameter in operation_parameters(self.module).items() if parameter.grad is None]
        if without:
            raise SurgeryError(
                f"{len(without)} parameters of the operation get no gradient, {without[0]} among them: training would "
                "leave them as they are."
            )
        self.module.zero_grad(set_to_none=True)
        expected = self.trained_tensors()
        if self.is_world_process_zero():
            self._trial_save(expected)

    def _trial_save(self, expected: dict[str, torch.Tensor]) -> None:
        folder = self._folder.path / "trial"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file(expected, folder / TRAINED_NAME)
            saved = load_file(folder / TRAINED_NAME)
            if any(not torch.equal(saved[name], tensor) for name, tensor in expected.items()):
                raise SurgeryError("A trial save did not read back as it was written; is the disk sound?")
        except OSError as error:
            raise SurgeryError(f"A trial save failed: {error.strerror or error}.", hint="Free some space.") from error
        finally:
            (folder / TRAINED_NAME).unlink(missing_ok=True)
            folder.rmdir()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The trained parameters alone: the rest is the source checkpoint's. Trainer asks every process."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._to_save, folder / TRAINED_NAME)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As Trainer's, with whole tensors where they are sharded."""
        if not self._sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.optimizer is not None and self.lr_scheduler is not None
        state = whole_state(self.optimizer, keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As Trainer's, with each process's share of what is sharded."""
        if not self._sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.optimizer is not None and self.lr_scheduler is not None
        folder = Path(checkpoint)
        # Mapped rather than read: each process needs its share alone.
        state = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
        load_state(self.optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        checkpoint = self._folder.stage_path(self._stage) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        self._to_save = self.trained_tensors()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                self._complete(checkpoint)
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch and safetensors have errors of their own for a disk that is full.
            shutil.rmtree(checkpoint, ignore_errors=True)
            raise self._folder.unwritten(f"the checkpoint of step {self.step}", error) from error
        finally:
            self._to_save = {}

    def _complete(self, checkpoint: Path) -> None:
        step = self.state.global_step
        if self._stream is not None:
            write_json(checkpoint / STREAM_NAME, self._stream.snapshot(step * self._per_step))
        mark_complete(checkpoint, Progress(self.step, self.tokens_seen, self.seconds, self._stage, step))
        self._folder.rotate(self._recipe.checkpoints.keep, self._guard.since)
        if self._on_progress is not None:
            self._on_progress({"event": "checkpoint", "step": self.step})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.restore(Path(resume_from_checkpoint))

    def restore(self, checkpoint: Path) -> Progress:
        """Weights and counters of a checkpoint; Trainer restores the rest when it resumes from it."""
        self.load_trained(checkpoint)
        progress = progress_of(checkpoint)
        self.tokens_seen, self._seconds_before = progress.tokens, progress.seconds
        return progress

    def stream_snapshot(self) -> StreamSnapshot | None:
        """Where a stream stands after the steps that were taken."""
        if self._stream is None:
            return None
        return self._stream.snapshot(self.state.global_step * self._per_step)

    @property
    def progress(self) -> Progress:
        """What was done so far."""
        return Progress(self.step, self.tokens_seen, self.seconds, self._stage, self.state.global_step)

    def start_clock(self) -> None:
        """Time and rate count from here, and the guard knows what was before."""
        self._guard = DivergenceGuard.of(self._recipe)
        self._guard.add_rows(self._folder.rows(), self._stage)
        self._started, self._fresh_tokens = time.monotonic(), 0

    def _devices(self) -> list[torch.device]:
        device = self.args.device
        return [device] if device.type == "cuda" else []


class StepCallback(TrainerCallback):
    """Sets what goes by a schedule of ours, and notes the learning rates before each step."""

    trainer: RecoveryTrainer

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer."""
        self.trainer.begin_step()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer; what is saved after a step is as the next one begins."""
        self.trainer.set_scheduled()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer."""
        self.trainer.note_rates()


class StopCallback(TrainerCallback):
    """Ends training after the current step, with a checkpoint, once `requested`."""

    def __init__(self) -> None:
        self.requested = False
        self.active = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer."""
        self.active = True

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer."""
        self.active = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Called by Trainer. A signal may reach one process a step earlier than another."""
        if any_process(self.requested):
            self.requested = True
            control.should_training_stop = True
            control.should_save = True
        return control
