"""Finished gradients on disk: an interrupted calibration goes on, and another form takes those of the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from surgery.checkpoint import sha256_json
from surgery.evaluation.retrieval.probes import ProbeSet
from surgery.operations.ssmax.calibration.gradients import Array, RowGradients

_NUMBERS = ("answers", "text", "drawn", "answer_loss", "text_loss")


class GradientStore:
    """Gradients by all that they depend on: the model and how it runs, its numbers, the haystack and the seed.

    Args:
        folder: that holds them; None keeps nothing.
        subject: plain data that identifies the model and how it runs.
    """

    def __init__(self, folder: Path | None, subject: Any) -> None:
        self._folder, self._subject = folder, sha256_json(subject)

    def get(self, numbers: Array, haystack: ProbeSet, drawn: Any, measure: Callable[[], RowGradients]) -> RowGradients:
        """The stored gradients, or those that ``measure`` returns, which are stored.

        Args:
            numbers: b, s and g of the model, ``(layers, heads, 3)``.
            haystack: the haystack.
            drawn: plain data that identifies the predictions of the text.
            measure: computes the gradients.
        """
        if self._folder is None:
            return measure()
        asked = hashlib.sha256(np.ascontiguousarray(numbers, dtype="<f8").tobytes()).hexdigest()
        path = self._folder / f"{sha256_json([self._subject, asked, asdict(haystack), drawn])}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as found:
                values = {name: found[name] for name in _NUMBERS}
            return RowGradients(
                values["answers"],
                values["text"],
                int(values["drawn"]),
                float(values["answer_loss"]),
                float(values["text_loss"]),
            )
        row = measure()
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **{name: getattr(row, name) for name in _NUMBERS})
        partial.replace(path)
        return row
