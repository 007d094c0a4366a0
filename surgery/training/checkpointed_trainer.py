"""Trainer with checkpoints that hold the trained parameters alone, and that count only when they are complete."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from surgery.checkpoint import write_json
from surgery.data.stream import StreamSnapshot
from surgery.errors import SurgeryError
from surgery.training.folder import TrainingFolder
from surgery.training.options import TrainingOptions
from surgery.training.patched_trainer import PatchedTrainer
from surgery.training.progress import STREAM_NAME, Progress, mark_complete, progress_of
from surgery.training.rows import StageRows
from surgery.training.sharding import copy_into, whole
from surgery.training.step_log import StepLog

TRAINED_NAME = "trained.safetensors"


class CheckpointedTrainer(PatchedTrainer):
    """Saves and restores a stage.

    Attributes:
        options: of the stage.
        folder: of the run.
        rows: of the stage.
        stage: its number, from 0.
        steps_log: rows of the log, tokens and time.
        kept: names of the parameters that checkpoints hold.
        rows_per_step: rows of one optimizer step, over all processes.
    """

    options: TrainingOptions
    folder: TrainingFolder
    rows: StageRows
    stage: int
    steps_log: StepLog
    kept: set[str]
    rows_per_step: int
    _saving: Path | None = None

    @property
    def module(self) -> nn.Module:
        """The model that is trained, unwrapped."""
        assert self.model is not None
        return self.model

    @property
    def step(self) -> int:
        """Finished steps, with those of earlier stages."""
        return self.steps_log.offset + self.state.global_step

    @property
    def progress(self) -> Progress:
        """Everything done so far."""
        log = self.steps_log
        return Progress(self.step, log.tokens, log.seconds, self.stage, self.state.global_step)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Save a checkpoint; if the disk is full, remove it, and name the remaining one in the error."""
        try:
            return super().train(*args, **kwargs)
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch and safetensors have errors of their own for a disk that is full.
            if self._saving is None:
                raise
            shutil.rmtree(self._saving, ignore_errors=True)
            raise self.folder.unwritten(f"the checkpoint of step {self.step}", error) from error

    def trained_tensors(self) -> dict[str, torch.Tensor]:
        """Every parameter that any stage trains, on the CPU, by its name in the model that is trained.

        All processes must call this for sharded parameters; the first one gets them.
        """
        found = {}
        for name, parameter in self.module.named_parameters():
            if name in self.kept:
                tensor = whole(parameter.detach())
                if not self.sharded or self.is_world_process_zero():
                    found[name] = tensor.to("cpu").contiguous()
        return found

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The trained parameters alone: the rest is in the source. Trainer calls it in every process."""
        folder = Path(output_dir or str(self.args.output_dir))
        self._saving = folder
        tensors = self.trained_tensors()
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / TRAINED_NAME)

    def complete_checkpoint(self) -> None:
        """Mark the checkpoint that was just saved as complete, and delete older ones."""
        checkpoint, step = self._saving, self.state.global_step
        assert checkpoint is not None
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            if self.rows.stream is not None:
                write_json(checkpoint / STREAM_NAME, self.rows.stream.snapshot(step * self.rows_per_step))
            mark_complete(checkpoint, self.progress)
            self.folder.rotate(self.options.checkpoints.keep, self.steps_log.guard.since)
        self._saving = None
        if self.is_world_process_zero():
            self.steps_log.tell({"event": "checkpoint", "step": self.step})

    def restore(self, checkpoint: Path) -> Progress:
        """Parameters and counters of a checkpoint; Trainer restores the rest when it resumes from it.

        Raises:
            SurgeryError: the checkpoint has other parameters than the model.
        """
        saved = load_file(checkpoint / TRAINED_NAME)
        names = {name for name, _ in self.module.named_parameters() if name in self.kept}
        if saved.keys() != names:
            different = sorted(saved.keys() ^ names)
            raise SurgeryError(f"{checkpoint.name} does not fit the model: {', '.join(different[:4])}")
        copy_into(self.module, saved)
        progress = progress_of(checkpoint)
        self.steps_log.resume(progress)
        return progress

    def stream_snapshot(self) -> StreamSnapshot | None:
        """Where a stream stands after the steps that were taken."""
        stream = self.rows.stream
        return None if stream is None else stream.snapshot(self.state.global_step * self.rows_per_step)
