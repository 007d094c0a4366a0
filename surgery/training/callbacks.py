"""Callbacks of a stage: what happens around each step, and how a run is stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from transformers import TrainerCallback

from surgery.training.processes import any_process


class StepHandler(Protocol):
    """The trainer, as `StepCallback` calls it."""

    def begin_step(self) -> None:
        """Before a step."""

    def set_scheduled(self) -> Any:
        """After a step."""

    def note_rates(self) -> None:
        """Before the optimizer's step."""

    def complete_checkpoint(self) -> None:
        """After a checkpoint is written."""


class StepCallback(TrainerCallback):
    """Sets scheduled parameters, notes the learning rates before each step, and completes checkpoints."""

    def __init__(self, trainer: StepHandler) -> None:
        self._trainer = trainer

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer."""
        self._trainer.begin_step()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer; a checkpoint saved after a step has the parameters with which the next one begins."""
        self._trainer.set_scheduled()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer."""
        self._trainer.note_rates()

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer, once everything of a checkpoint is written."""
        self._trainer.complete_checkpoint()


class StopCallback(TrainerCallback):
    """Ends training after the current step, with a checkpoint, once `requested`."""

    def __init__(self) -> None:
        self.requested = False
        self.active = False
        self.acknowledge: Callable[[], None] = _nothing

    def request(self) -> None:
        """Ask to stop after the current step, and tell the user so at once."""
        self.requested = True
        self.acknowledge()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer."""
        self.active = True

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer; the callback outlives the trainer, and must not keep its model."""
        self.active, self.acknowledge = False, _nothing

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Called by Trainer. A signal may reach one process a step earlier than another."""
        if any_process(self.requested):
            self.requested = True
            control.should_training_stop = True
            control.should_save = True
        return control


def _nothing() -> None:
    """Nobody to tell."""
