"""Held-out loss per token, document by document, so that two models can be compared in pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from surgery.data import IGNORED, Row, collate
from surgery.operations.screening.rejection import counting_rejections
from surgery.recovery.logits import Logits, pieces, run, targets

Losses = list[NDArray[np.float64]]

# The share of rejected keys is counted on no more than this.
SAMPLED_ROWS = 4
SAMPLED_QUERIES = 64


@torch.no_grad()
def document_losses(model: nn.Module, rows: Sequence[Row], *, size: int, device: torch.device, pad: int = 0) -> Losses:
    """Next-token losses in nats of each document's predicted tokens, documents in the order of their numbers.

    Args:
        model: with the operation on or off; its mode is restored.
        rows: to measure on.
        size: of them in one forward pass.
        device: of the model.
        pad: token id that fills rows up.
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
    model.train(was_training)
    return [np.concatenate(found[key]) for key in sorted(found)]


def _losses(logits: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    found = functional.cross_entropy(
        logits.float().flatten(0, 1), predicted.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return found.view_as(predicted)


@torch.no_grad()
def rejected_share(model: nn.Module, rows: Sequence[Row], *, device: torch.device) -> float | None:
    """Share of the keys that screening rejects, from a sample: some of the rows, and some queries of each.

    Returns:
        None for a model without screening, or without rows.
    """
    was_training = model.training
    model.eval()
    shares = []
    for row in rows[:: max(1, len(rows) // SAMPLED_ROWS)][:SAMPLED_ROWS]:
        batch = {key: value.to(device) for key, value in collate([row]).items()}
        with counting_rejections(model, torch.arange(0, row.tokens, max(1, row.tokens // SAMPLED_QUERIES))) as counts:
            run(model, batch)
        if counts.shares():
            shares.append(counts.total())
    model.train(was_training)
    return sum(shares) / len(shares) if shares else None


def mean_loss(losses: Losses) -> float | None:
    """Nats per predicted token; None where nothing was predicted."""
    count = sum(part.size for part in losses)
    return float(sum(part.sum() for part in losses)) / count if count else None
