"""Held-out loss per token, document by document, so that two models can be compared in pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from surgery.data import IGNORED, Row, collate
from surgery.training.logits import Logits, pieces, run, targets

Losses = list[NDArray[np.float64]]


@torch.no_grad()
def document_losses(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    size: int,
    device: torch.device,
    pad: int = 0,
    on_rows: Callable[[int, int], None] | None = None,
) -> Losses:
    """Next-token losses in nats of each document's predicted tokens, documents in the order of their numbers.

    Args:
        model: with the operation on or off; its mode is restored.
        rows: to measure on.
        size: of them in one forward pass.
        device: of the model.
        pad: token id that fills rows up.
        on_rows: called after each forward pass with the number of rows that are measured, and of all.
    """
    was_training = model.training
    model.eval()
    found: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        batch = {key: value.to(device) for key, value in collate(chosen, pad).items()}
        labels = batch["labels"][:, 1:]
        parts = pieces(model, batch)
        logits = Logits(model, batch, whole=len(parts) == 1)
        losses = torch.cat([_losses(logits(part), targets(batch, part)) for part in parts], dim=1)
        for number, row in enumerate(chosen):
            begin = 0
            for place, document in enumerate(row.documents):
                here = slice(begin, begin + len(document) - 1)
                counted = labels[number, here] != IGNORED
                key = (row.origins[place], -1) if row.origins else (start + number, place)
                found.setdefault(key, []).append(losses[number, here][counted].double().cpu().numpy())
                begin += len(document)
        if on_rows is not None:
            on_rows(start + len(chosen), len(rows))
    model.train(was_training)
    return [np.concatenate(found[key]) for key in sorted(found)]


@dataclass(frozen=True)
class HeldOutPass:
    """One forward pass over a held-out row, for extensions that measure something in it.

    Attributes:
        tokens: of the row.
        run: runs it, without gradient.
    """

    tokens: int
    run: Callable[[], None]


def held_out_passes(model: nn.Module, rows: Sequence[Row], device: torch.device) -> list[HeldOutPass]:
    """A pass for each row; nothing runs until it is called."""

    def forward(row: Row) -> None:
        run(model, {key: value.to(device) for key, value in collate([row]).items()})

    return [HeldOutPass(row.tokens, partial(forward, row)) for row in rows]


def _losses(logits: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    found = functional.cross_entropy(
        logits.float().flatten(0, 1), predicted.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return found.view_as(predicted)


def mean_loss(losses: Losses) -> float | None:
    """Nats per predicted token; None where nothing was predicted."""
    count = sum(part.size for part in losses)
    return float(sum(part.sum() for part in losses)) / count if count else None
