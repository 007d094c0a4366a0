"""The guard of a calibration: the loss of held-out passages with and without screening."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from surgery.evaluation.loss.token_losses import token_losses
from surgery.evaluation.passages import Passage
from surgery.operations.screening import open_start
from surgery.operations.screening.calibration.choice import Choice
from surgery.operations.screening.calibration.grid import Grid
from surgery.operations.screening.calibration.observation import sample_rows, screening_modules
from surgery.operations.screening.calibration.results import GuardedPassage
from surgery.operations.screening.rejection import counting_rejections

COUNTED_ROWS = 64


def head_values(choice: Choice, grid: Grid, softness: float) -> dict[str, list[list[float]]]:
    """Start values of each layer and head, by parameter.

    The ramp of width ``softness`` lies below the chosen threshold, so the keys above it keep their full weight.
    """
    import math

    full = open_start(grid.windows[-1], softness)
    values: dict[str, list[list[float]]] = {"threshold": [], "softness": [], "log2_window": []}
    last = len(grid.windows) - 1
    for thresholds, windows in zip(choice.threshold.tolist(), choice.window.tolist(), strict=True):
        values["threshold"].append(
            [full["threshold"] if level == 0 else grid.thresholds[level] - softness for level in thresholds]
        )
        values["softness"].append([softness] * len(thresholds))
        values["log2_window"].append(
            [full["log2_window"] if level == last else math.log2(grid.windows[level]) for level in windows]
        )
    return values


def set_values(model: Any, values: dict[str, list[list[float]]], heads: Sequence[int] | None = None) -> None:
    """Set the values of every screened layer."""
    with torch.no_grad():
        for number, (_, screening) in enumerate(screening_modules(model).values()):
            for name, rows in values.items():
                parameter = getattr(screening, name)
                row = rows[number] if heads is None else [rows[number][head] for head in heads]
                parameter.copy_(torch.tensor(row))


class HeldOutLoss:
    """Measures the loss of held-out passages; the loss without screening is measured once."""

    def __init__(self, model: Any, passages: Sequence[Passage], on_tokens: Callable[[int, str], None]) -> None:
        self.model, self.passages, self.on_tokens = model, passages, on_tokens
        self.losses: list[float] = []

    @property
    def tokens(self) -> int:
        """Number of tokens of all passages."""
        return sum(len(passage.tokens) for passage in self.passages)

    def measure(self, *, until: float | None = None) -> list[GuardedPassage]:
        """The loss of every passage with the model's current values, and the share of rejected keys.

        Args:
            until: stop after the first passage whose loss rises by more than this, in nats per token.
        """
        measured = []
        for number, passage in enumerate(self.passages):
            tokens = torch.tensor([passage.tokens], device=self.model.device)
            if number == len(self.losses):
                self.losses.append(self._loss(tokens, off=True))
                self.on_tokens(len(passage.tokens), "held-out text without screening")
            rows = sample_rows(len(passage.tokens), COUNTED_ROWS, torch.Generator().manual_seed(number))
            with counting_rejections(self.model, rows) as counts:
                loss = self._loss(tokens, off=False)
            self.on_tokens(len(passage.tokens), "held-out text with screening")
            measured.append(
                GuardedPassage(passage.document, len(passage.tokens), self.losses[number], loss, counts.total())
            )
            if until is not None and not measured[-1].change <= until:
                break
        return measured

    def _loss(self, tokens: torch.Tensor, *, off: bool) -> float:
        layers = screening_modules(self.model).values()
        for _, screening in layers:
            screening.enabled = not off
        try:
            return float(token_losses(self.model, tokens).double().mean())
        finally:
            for _, screening in layers:
                screening.enabled = True
