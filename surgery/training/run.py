"""A training run: a model taken through its stages, from the beginning or from a checkpoint, to the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.data import Row
from surgery.training.dataset import TrainingData
from surgery.training.errors import DivergedError, TrainingStoppedError
from surgery.training.events import InTurn
from surgery.training.folder import TrainingFolder
from surgery.training.options import Batch, Budget, TrainingOptions
from surgery.training.processes import is_first
from surgery.training.progress import Progress, progress_of, stream_of

if TYPE_CHECKING:
    from torch import nn

    from surgery.training.callbacks import StopCallback
    from surgery.training.extension import Extension
    from surgery.training.held_out import Losses
    from surgery.training.parameter_groups import MakeGroups
    from surgery.training.step_log import OnProgress
    from surgery.training.teacher import Teacher
    from surgery.training.trainer import StageTrainer


def count_steps(
    batch: Batch,
    budget: Budget,
    sources: Sequence[Sequence[Row]],
    weights: Sequence[float] = (1.0,),
    processes: int = 1,
) -> tuple[int, float]:
    """Optimizer steps of a stage, and tokens in each on average (rows are not always full)."""
    rows = batch.sequences * batch.accumulation * processes
    filled = [(source, weight) for source, weight in zip(sources, weights, strict=True) if source]
    # A source's share is of tokens, so its share of rows is the larger the emptier they are.
    per_row = [sum(row.tokens for row in source) / len(source) for source, _ in filled]
    total = sum(weight for _, weight in filled)
    per_step = rows * total / sum(weight / tokens for (_, weight), tokens in zip(filled, per_row, strict=True))
    if budget.steps is not None:
        return budget.steps, per_step
    assert budget.tokens is not None
    return max(1, math.ceil(budget.tokens / per_step)), per_step


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run, without its model.

    Attributes:
        stages: options of each stage.
        data: rows for the length of every stage.
        device: auto, cpu, cuda or mps.
        again: the command that resumes the run, for the message of a run that was stopped.
        pad: token id that fills rows up.
        on_progress: called with events, in the first process.
        prepare: sets ``requires_grad`` for a stage (by number), and returns its extensions.
        groups: parameter groups of the optimizer; by default `parameter_groups`.
    """

    stages: Sequence[TrainingOptions]
    data: TrainingData
    device: str = "auto"
    again: str = "call train again with resume=True"
    pad: int = 0
    on_progress: OnProgress | None = None
    prepare: Callable[[int], Sequence[Extension]] | None = None
    groups: MakeGroups | None = None

    def steps(self, number: int, processes: int = 1) -> int:
        """Optimizer steps of a stage."""
        own = self.stages[number]
        rows = self.data.rows(own.sequence_length)
        return count_steps(own.batch, own.budget, rows, self.data.weights, processes)[0]


class TrainingRun:
    """One model and its stages.

    Args:
        model: prepared.
        settings: how it trains.
        folder: for log and checkpoints.
        stop: asks to stop after the current step.
        kept: names of the parameters that any stage trains.
        teacher: gives targets, where an objective needs them.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: RunSettings,
        folder: TrainingFolder,
        stop: StopCallback,
        kept: Sequence[str],
        teacher: Teacher | None = None,
    ) -> None:
        self.model, self.settings, self.folder, self.stop = model, settings, folder, stop
        self.kept, self.teacher = kept, teacher
        self._give = InTurn(settings.on_progress) if settings.on_progress is not None else None
        self.total_steps = sum(settings.steps(number) for number in range(len(settings.stages)))

    def try_out(self, numbers: Sequence[int]) -> None:
        """A trial step of each stage.

        Raises:
            SurgeryError, DivergedError: as `trial`.
        """
        from surgery.training.trial import trial

        for number in numbers:
            trial(self.trainer(number, Progress(0, 0, 0.0)))
        self.tell({"event": "trial"})

    def train(self, numbers: Sequence[int], start: Path | None) -> StageTrainer:
        """Train the stages in order.

        Args:
            numbers: of the stages that train parameters of this model.
            start: the checkpoint to resume from.

        Returns:
            The trainer of the last stage.

        Raises:
            DivergedError: the loss or gradient is no longer finite, or the loss rose for too long.
            TrainingStoppedError: interrupted, with a checkpoint to resume from.
        """
        progress = progress_of(start) if start is not None else Progress(0, 0, 0.0)
        snapshot = stream_of(start) if start is not None else None
        for number in numbers:
            if number < progress.stage:
                continue
            resumed = start if number == progress.stage else None
            # Within a stage, the checkpoint has the counters of the stage itself.
            earlier = Progress(progress.step - progress.stage_step, progress.tokens, progress.seconds)
            trainer = self.trainer(number, progress if resumed is None else earlier, snapshot)
            self.stop.acknowledge = partial(self._acknowledge_stop, trainer)
            _train_stage(trainer, resumed)
            progress = trainer.progress
            # The next stage reads on where this one stopped, as its own first row.
            snapshot = trainer.stream_snapshot()
            snapshot = None if snapshot is None else {**snapshot, "row": 0}
            if self.stop.requested and progress.step < self.total_steps:
                raise TrainingStoppedError(
                    f"stopped after step {progress.step} of {self.total_steps}; a checkpoint was saved",
                    hint=f"Resume with: {self.settings.again}",
                )
        return trainer

    def trainer(self, number: int, before: Progress, snapshot: dict[str, Any] | None = None) -> StageTrainer:
        """The trainer of one stage; the model is prepared for that stage."""
        from surgery.training.arguments import training_arguments
        from surgery.training.parameter_groups import parameter_groups
        from surgery.training.rows import StageRows
        from surgery.training.trainer import StageTrainer

        settings, data = self.settings, self.settings.data
        options = settings.stages[number]
        extensions = settings.prepare(number) if settings.prepare is not None else ()
        stream = None
        if data.stream is not None:
            stream = data.stream(options.sequence_length, options.seed + number, snapshot)
        arguments = training_arguments(options, self.folder.stage_path(number), 1, settings.device, number)
        arguments.max_steps = settings.steps(number, arguments.world_size)
        train = data.rows(options.sequence_length)
        return StageTrainer(
            self.model,
            arguments,
            options=options,
            folder=self.folder,
            rows=StageRows(train, data.held_out, data.weights, stream, settings.pad),
            stage=number,
            before=before,
            kept=self.kept,
            total=self.total_steps if arguments.world_size == 1 else None,
            teacher=self.teacher,
            extensions=extensions,
            groups=settings.groups or parameter_groups,
            on_progress=self.tell,
            callbacks=[self.stop],
        )

    def note_held_out(self, trainer: StageTrainer, losses: Losses) -> None:
        """Write a held-out loss as a row of the log, once.

        Raises:
            DivergedError: it is not finite.
        """
        from surgery.training.held_out import mean_loss

        loss, step = mean_loss(losses), trainer.step
        if loss is None:
            return
        if not math.isfinite(loss):
            raise DivergedError(
                f"the held-out loss after step {step} is {loss}",
                hint="Check the model with `surgery verify`: its loss on this text is not finite.",
            )
        if any(row["step"] == step and "held_out_loss" in row for row in self.folder.rows()):
            return
        seconds = round(trainer.progress.seconds, 3) if step else 0.0
        row = {"step": step, "tokens": trainer.progress.tokens, "held_out_loss": loss, "seconds": seconds}
        row |= {f"held_out_{name}": value for name, value in trainer.held_out_numbers().items()}
        if trainer.is_world_process_zero():
            self.folder.append(row)
        self.tell({"event": "evaluation", "steps": self.total_steps, **row})

    def _acknowledge_stop(self, trainer: StageTrainer) -> None:
        """Give an event as soon as the run is asked to stop: the step that is finished first, and what is saved now."""
        last = self.folder.last_complete()
        self.tell(
            {
                "event": "stopping",
                "step": min(trainer.step + 1, self.total_steps),
                "checkpoint": None if last is None else progress_of(last).step,
            }
        )

    def tell(self, event: dict[str, Any]) -> None:
        """Give an event, in the first process."""
        if self._give is not None and is_first():
            self._give(event)


def _train_stage(trainer: StageTrainer, resumed: Path | None) -> None:
    done = progress_of(resumed).stage_step if resumed is not None else 0
    trainer.start_clock()
    if done < trainer.args.max_steps:
        trainer.train(resume_from_checkpoint=str(resumed) if resumed is not None else None)
    elif resumed is not None:
        # All steps of the stage were taken.
        trainer.restore(resumed)
        trainer.state.global_step = done
