"""A recovery run from recipe to trained checkpoint."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from surgery.checkpoint import Checkpoint, Source, check_output, open_checkpoint, resolve, sha256_json
from surgery.errors import UsageError
from surgery.recovery.dataset import TrainingData, read_data
from surgery.recovery.errors import DivergedError, TrainingStoppedError
from surgery.recovery.planning import FinetunePlan, count_steps, effective_precision, make_plan
from surgery.recovery.preparing import (
    Layout,
    is_operation,
    linear_names,
    lora_targets,
    operation_parameters,
    prepare_model,
    trained_names,
)
from surgery.recovery.reading import dump_recipe, read_recipe
from surgery.recovery.recipe import Recipe, TrainLora
from surgery.recovery.state import Progress, TrainingFolder, progress_of
from surgery.recovery.writing import Record, changed_tensors, plan_space, write_result

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from surgery.recovery.trainer import OnProgress, RecoveryTrainer, StopCallback

PLACEHOLDER = "path/to/"


@dataclass(frozen=True)
class FinetuneResult:
    """What a run did. A dry run has a ``plan`` and neither steps nor losses nor an output."""

    plan: FinetunePlan
    output: Path | None = None
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    training_loss: float | None = None
    held_out_loss_before: float | None = None
    held_out_loss_after: float | None = None
    scale: Mapping[str, Mapping[str, Sequence[float]]] | None = None
    resumed_from: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **asdict(self),
            "plan": self.plan.to_dict(),
            "output": None if self.output is None else str(self.output),
        }


def finetune(
    recipe: str | Path | Recipe | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    dry_run: bool = False,
    force: bool = False,
    device: str = "auto",
    attn_implementation: str | None = None,
    on_progress: OnProgress | None = None,
) -> FinetuneResult:
    """Train what a recipe says and write the result as a full checkpoint.

    While it runs, everything lies in ``<output>.training``; the output appears whole, at the end. Ctrl-C or SIGTERM
    finishes the step and saves a checkpoint; a second one stops at once.

    Args:
        recipe: a YAML file, or a recipe in Python.
        overrides: ``a.b=c`` each, as ``--set``.
        resume: go on with the run that was interrupted. Exact: the same steps, losses and weights.
        dry_run: read the text and plan, train nothing.
        force: start over where an interrupted run is, and replace an output that is not empty.
        device: auto, cpu, cuda or mps.
        attn_implementation: attention backend; by default transformers' choice.
        on_progress: called with an event, a plain dictionary with ``event``: plan, trial, evaluation, step,
            checkpoint, writing or done.

    Raises:
        RecipeError: the recipe is not valid; every fault is listed.
        UsageError: no text, an output that is in the way, nothing to resume, an unknown device.
        CheckpointError: the model is missing or broken, the disk too small.
        PlanRefusedError: the model was not converted, or has nothing to train.
        DivergedError: loss or gradient stopped being finite; the last good checkpoint is kept.
        TrainingStoppedError: interrupted, with a checkpoint to resume from.
    """
    valid = read_recipe(recipe, overrides)
    _check_placeholders(valid)
    source = resolve(valid.model)
    checkpoint = open_checkpoint(source)
    layout = Layout(checkpoint.config)
    # Before the text is read, which takes longer.
    trained_names(valid, layout, checkpoint.tensors)
    output = check_output(Path(valid.output), force=force, source=source.folder)
    from surgery.loading import load_tokenizer

    tokenizer = load_tokenizer(source.folder)
    data = read_data(valid, lambda texts: tokenizer(texts, verbose=False)["input_ids"])
    plan = make_plan(valid, checkpoint, layout, data)
    if on_progress is not None:
        on_progress({"event": "plan", **plan.to_dict()})
    if dry_run:
        return FinetuneResult(plan)
    run = _Run(valid, source, checkpoint, layout, output, data, plan, on_progress)
    with run.folder.alone():
        return run.train(
            tokenizer,
            resume=resume,
            force=force,
            device=device,
            attn_implementation=attn_implementation,
            again=_command(recipe, overrides),
        )


def _check_placeholders(recipe: Recipe) -> None:
    """Refuse the shipped recipes' placeholders by name, all at once."""
    texts = [*recipe.data.patterns, *(recipe.data.held_out if isinstance(recipe.data.held_out, list) else [])]
    left = [
        key
        for key, value in (("model", recipe.model), *(("data.text", text) for text in texts), ("output", recipe.output))
        if value.startswith(PLACEHOLDER) and not Path(value).exists() and not (key == "output" and _parent(value))
    ]
    if left:
        keys = list(dict.fromkeys(left))
        raise UsageError(
            f"The recipe still has placeholders: {', '.join(f'{key} ({PLACEHOLDER}...)' for key in keys)}.",
            hint="Set them: " + " ".join(f"--set {key}=..." for key in keys),
        )


def _parent(value: str) -> bool:
    return Path(value).parent.is_dir()


def _command(recipe: str | Path | Recipe | Mapping[str, Any], overrides: Sequence[str]) -> str:
    if not isinstance(recipe, str | Path):
        return "call finetune again with resume=True"
    import shlex

    return shlex.join(
        ["surgery", "finetune", str(recipe), *(word for item in overrides for word in ("--set", item)), "--resume"]
    )


class _Run:
    """The parts of one run, in order."""

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        checkpoint: Checkpoint,
        layout: Layout,
        output: Path,
        data: TrainingData,
        plan: FinetunePlan,
        on_progress: OnProgress | None,
    ) -> None:
        self.recipe, self.source, self.checkpoint, self.layout = recipe, source, checkpoint, layout
        self.output, self.data, self.plan = output, data, plan
        self.on_progress = on_progress
        self.folder = TrainingFolder(output)

    def train(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        resume: bool,
        force: bool,
        device: str,
        attn_implementation: str | None,
        again: str,
    ) -> FinetuneResult:
        from surgery.recovery.trainer import RatesCallback, RecoveryTrainer, StopCallback, training_arguments

        recipe = self.recipe.model_copy(update={"precision": effective_precision(self.recipe, self.checkpoint)})
        plan_space(self.checkpoint, self.output)
        # Checked before the folder is made, so that a wrong device or tracker leaves nothing behind.
        arguments = training_arguments(recipe, self.folder.path, self.plan.steps, device)
        start = self.folder.begin(self.recipe, self._identity(), resume=resume, force=force)
        # Now, since the checkpoint may be rotated away.
        resumed_from = progress_of(start).step if start is not None else None
        steps, _ = count_steps(recipe, self.data, arguments.world_size)
        arguments.max_steps = steps
        from transformers import set_seed

        set_seed(recipe.seed)
        model = self._load(recipe, device, attn_implementation)
        prepared = prepare_model(model, recipe, self.layout)
        stop, rates = StopCallback(), RatesCallback()
        trainer = RecoveryTrainer(
            prepared,
            arguments,
            recipe=recipe,
            layout=self.layout,
            folder=self.folder,
            train=self.data.train,
            held_out=self.data.held_out,
            pad=tokenizer.pad_token_id or 0,
            on_progress=self.on_progress,
            callbacks=[stop, rates],
        )
        rates.trainer = trainer
        with _signals(stop):
            self._learn(trainer, start, steps)
        if stop.requested and trainer.state.global_step < steps:
            raise TrainingStoppedError(
                f"Stopped after step {trainer.state.global_step} of {steps}; a checkpoint was saved.",
                hint=f"Go on with: {again}",
            )
        return self._finish(trainer, resumed_from, force=force)

    def _load(self, recipe: Recipe, device: str, attn_implementation: str | None) -> Any:
        from surgery.loading import RunOptions, load_model

        dtype: Literal["bfloat16", "float32"] = "bfloat16" if recipe.precision == "bfloat16" else "float32"
        options = RunOptions(device=device, dtype=dtype, attn_implementation=attn_implementation)
        return load_model(self.source.folder, options)

    def _learn(self, trainer: RecoveryTrainer, start: Path | None, steps: int) -> None:
        progress = progress_of(start) if start is not None else Progress(0, 0, 0.0)
        if start is None:
            trainer.trial(self.recipe.data.sequence_length)
            self._tell({"event": "trial"})
            self._note_held_out(trainer, 0)
        trainer.start_clock()
        if progress.step < steps:
            trainer.train(resume_from_checkpoint=str(start) if start is not None else None)
        elif start is not None:
            # All steps were taken; only the output is missing.
            trainer.restore(start)
            trainer.state.global_step = progress.step

    def _note_held_out(self, trainer: RecoveryTrainer, step: int) -> float | None:
        for known in self.folder.rows():
            if known["step"] == step and "held_out_loss" in known:
                return float(known["held_out_loss"])
        loss = trainer.held_out_loss()
        if loss is None:
            return None
        if not math.isfinite(loss):
            raise DivergedError(
                f"The held-out loss after step {step} is {loss}.",
                hint="The model gives no finite loss on this text: check it with `surgery verify`.",
            )
        seconds = round(trainer.seconds, 3) if step else 0.0
        row = {"step": step, "tokens": trainer.tokens_seen, "held_out_loss": loss, "seconds": seconds}
        self.folder.append(row)
        self._tell({"event": "evaluation", "steps": self.plan.steps, **row})
        return loss

    def _finish(self, trainer: RecoveryTrainer, resumed_from: int | None, *, force: bool) -> FinetuneResult:
        steps, seconds = trainer.state.global_step, trainer.seconds
        after = self._note_held_out(trainer, steps)
        rows = self.folder.rows()
        before = next((row["held_out_loss"] for row in rows if row["step"] == 0 and "held_out_loss" in row), None)
        losses = [row["loss"] for row in rows if "loss" in row]
        scale = trainer.scale_by_layer()
        result = FinetuneResult(
            plan=self.plan,
            output=self.output,
            steps=steps,
            tokens=trainer.tokens_seen,
            seconds=round(seconds, 1),
            training_loss=losses[-1] if losses else None,
            held_out_loss_before=before,
            held_out_loss_after=after,
            scale=scale,
            resumed_from=resumed_from,
        )
        self._tell({"event": "writing"})
        if trainer.is_world_process_zero():
            self._write(trainer, result, rows, force=force)
            self.folder.remove()
        self._tell({"event": "done", **result.to_dict()})
        return result

    def _write(
        self, trainer: RecoveryTrainer, result: FinetuneResult, rows: list[dict[str, Any]], *, force: bool
    ) -> None:
        import surgery
        from surgery.reporting.training import training_curves

        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        adapter = None
        if isinstance(self.recipe.train, TrainLora):
            adapter = _Adapter(model, self.source.name)
            model = model.merge_and_unload(safe_merge=True)
        names = trained_names(self.recipe, self.layout, (name for name, _ in model.named_parameters()))
        if isinstance(self.recipe.train, TrainLora):
            chosen = self.layout.chosen(self.recipe)
            targets = lora_targets(self.recipe.train, self.layout, linear_names(model), chosen)
            names += [f"{target}.weight" for target in targets]
        entry = {
            "step": "finetune",
            "version": surgery.__version__,
            "recipe_sha256": sha256_json(self.recipe.model_dump(mode="json")),
            "label": f"finetune {self.recipe.train.what}",
            "trained": self.recipe.train.what,
            "objective": self.recipe.objective.name,
            "steps": result.steps,
            "tokens": result.tokens,
            "seconds": result.seconds,
            "loss": result.training_loss,
            "held_out_loss_before": result.held_out_loss_before,
            "held_out_loss_after": result.held_out_loss_after,
            "held_out_tokens": self.plan.held_out_tokens,
            "data_sha256": self.data.fingerprint,
            "weights_changed": any(not is_operation(name) for name in names),
        }
        record = Record(
            entry=entry,
            recipe=dump_recipe(self.recipe),
            log=self.folder.log_path.read_text(encoding="utf-8"),
            draw=lambda path: training_curves(rows, path),
            adapter=adapter.write if adapter else None,
        )
        write_result(self.checkpoint, self.output, changed_tensors(model, names), record, force=force)

    def _identity(self) -> dict[str, str]:
        checkpoint = self.checkpoint
        model = {
            "config": checkpoint.config,
            "files": dict(checkpoint.file_sizes),
            "tensors": {name: [info.dtype, list(info.shape)] for name, info in checkpoint.tensors.items()},
        }
        return {"data": self.data.fingerprint, "model": sha256_json(model)}

    def _tell(self, event: dict[str, Any]) -> None:
        if self.on_progress is not None:
            self.on_progress(event)


class _Adapter:
    """A trained adapter, taken before it is merged."""

    def __init__(self, model: Any, base: str) -> None:
        """Take the adapter's state.

        Raises:
            RuntimeError: it lacks trained parameters of the operation.
        """
        from peft import get_peft_model_state_dict

        self._model, self._base = model, base
        state = get_peft_model_state_dict(model)
        self._state = {name: tensor.detach().to("cpu").clone().contiguous() for name, tensor in state.items()}
        trained = operation_parameters(model)
        held = [name for name in self._state if is_operation(name)]
        if len(held) != len(trained):
            raise RuntimeError(f"the adapter holds {len(held)} of {len(trained)} parameters of the operation")

    def write(self, folder: Path) -> None:
        """As PEFT saves it, with the base by name rather than by path."""
        from safetensors.torch import save_file

        folder.mkdir()
        config = self._config()
        save_file(self._state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(folder))

    def _config(self) -> Any:
        import copy

        config = copy.deepcopy(self._model.peft_config["default"])
        config.base_model_name_or_path = self._base
        config.inference_mode = True
        return config


@contextmanager
def _signals(stop: StopCallback) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks to stop after the step; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def ask(number: int, frame: Any) -> None:
        if stop.requested or not stop.active:  # outside the steps there is nothing to finish
            raise KeyboardInterrupt
        stop.requested = True

    for kind in kinds:
        signal.signal(kind, ask)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
