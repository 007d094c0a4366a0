"""Sums over the logits of a batch, a piece of the positions at a time where all at once would take too much memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from surgery.loading.head import base_output, head_logits, vocabulary
from surgery.training.memory import TRAINED_AT_ONCE
from surgery.training.sharding import is_sharded

Batch = dict[str, torch.Tensor]


def token_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits ``(rows, length, vocabulary)`` of packed rows. No cache: with one, transformers sees no borders."""
    logits: torch.Tensor = model(**_inputs(batch)).logits
    return logits


def run(model: nn.Module, batch: Batch) -> None:
    """The forward pass of packed rows, for what hooks see in it."""
    base_output(model, **_inputs(batch))


class Logits:
    """Logits of a batch for some of its positions: cut from all of them, or made by the model's head when asked for.

    Args:
        model: runs at once, up to its head.
        batch: from `surgery.data.collate`.
        whole: whether to make them all now.
    """

    def __init__(self, model: nn.Module, batch: Batch, *, whole: bool) -> None:
        self._model = model
        self._batch = batch
        self._whole = token_logits(model, batch) if whole else None
        self._output = None if whole else base_output(model, **_inputs(batch))

    def __call__(self, positions: slice) -> torch.Tensor:
        """Logits ``(rows, positions, vocabulary)``."""
        if self._whole is not None:
            return self._whole[:, positions]
        return head_logits(self._model, self._output, self._batch["input_ids"], positions.start, positions.stop)


def pieces(model: Any, batch: Batch) -> list[slice]:
    """The positions that predict a token, cut so that the logits of each piece fit into `TRAINED_AT_ONCE`; mostly one.

    Of a sharded model it is one always: FSDP takes each call of the model for a whole forward pass.
    """
    rows, length = batch["input_ids"].shape
    size = max(1, TRAINED_AT_ONCE // (rows * vocabulary(model)))
    if length <= size or any(is_sharded(parameter) for parameter in model.parameters()):
        return [slice(0, length - 1)]
    return [slice(start, min(start + size, length - 1)) for start in range(0, length - 1, size)]


def targets(batch: Batch, positions: slice) -> torch.Tensor:
    """The tokens ``(rows, positions)`` that are to be predicted there; `IGNORED` where nothing is."""
    return batch["labels"][:, positions.start + 1 : positions.stop + 1]


def summed(parts: list[slice], action: Callable[[slice], torch.Tensor]) -> torch.Tensor:
    """Sum of an action over pieces; of several, each keeps nothing and is done again in the backward pass."""
    if len(parts) == 1:
        return action(parts[0])
    total: torch.Tensor = sum(checkpoint(action, part, use_reentrant=False) for part in parts)
    return total


def _inputs(batch: Batch) -> dict[str, Any]:
    return {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
