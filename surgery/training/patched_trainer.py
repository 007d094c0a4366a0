"""The private methods of transformers' Trainer that are overridden, each with the reason why no public hook is enough.

They may change with any release of transformers; everything else in this room uses public methods, arguments and
callbacks.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from surgery.training.sharding import load_state, whole, whole_state


class PatchedTrainer(Trainer):
    """Trainer for weights that may be sharded, with checkpoints that hold the trained parameters alone.

    Attributes:
        sharded: whether the model is sharded by `surgery.training.sharding.shard`.
    """

    sharded: bool = False

    def restore(self, checkpoint: Path) -> Any:
        """Load the trained parameters of a checkpoint."""
        raise NotImplementedError

    def diverged(self, what: str) -> Exception:
        """The error for a loss or gradient that is not finite."""
        raise NotImplementedError

    def _wrap_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        """A sharded model reduces its own gradients, and accelerate would wrap it in DistributedDataParallel.

        No argument turns that off; preparing it as for an evaluation does.
        """
        if self.sharded:
            self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        wrapped: nn.Module = super()._wrap_model(model, *args, **kwargs)
        return wrapped

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Stops at a norm that is not finite, before the optimizer's step.

        ``on_pre_optimizer_step`` comes in time and is not given the norm; gradients that are finite can have a norm
        that is not. For sharded weights the norm is a sharded tensor, which the log cannot hold.
        """
        norm = whole(super()._get_grad_norm(model, grad_norm))
        if not math.isfinite(float(norm)):
            raise self.diverged(f"the gradient's norm became {float(norm)}")
        return norm

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the trained parameters only: Trainer expects a whole model, but frozen weights are in the source."""
        self.restore(Path(resume_from_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save whole tensors of sharded weights: all processes take part, but Trainer calls only the first."""
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.optimizer is not None and self.lr_scheduler is not None
        state = whole_state(self.optimizer, keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load whole tensors of sharded weights: each process keeps its share."""
        if not self.sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.optimizer is not None and self.lr_scheduler is not None
        folder = Path(checkpoint)
        # Mapped, not read, because each process needs only its share.
        state = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
        load_state(self.optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))
