"""The six models that the paper of SSMax compares (arXiv 2501.19399, section 3.2), each trained on the same rows.

softmax    (a)                       ssmax    (b) s ln n
fixed      (c) s = 1, not learned    bias     (d) s ln n + b
after      (e) softmax, replaced by SSMax after the training
during     (f) softmax, replaced for the last fifth of the training
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import surgery
from bench.papers.runs import Scale, draw_wider, fit, load
from surgery.data import Row

NAMES = ("softmax", "ssmax", "fixed", "bias", "after", "during")
LAST_PART = 0.2


class Trainer:
    """Trains the six models of one seed, and keeps each in a folder."""

    def __init__(
        self, scale: Scale, steps: int, rows: Sequence[Row], vocabulary: int, folder: Path, *, seed: int, device: str
    ) -> None:
        self.scale, self.steps, self.rows = scale, steps, rows
        self.vocabulary, self.folder, self.seed, self.device = vocabulary, folder, seed, device

    def model(self, name: str) -> Path:
        """The folder of a trained model."""
        if name == "softmax":
            return self._trained(name, self._new("softmax"), 0, self.steps)
        if name == "after":
            return self._converted(self.model("softmax"), name)
        if name == "during":
            first = round(self.steps * (1 - LAST_PART))
            begun = self._trained("during-first", self._new("softmax"), 0, first)
            return self._trained(name, self._converted(begun, "during-converted"), first, self.steps)
        options: dict[str, Any] = {
            "ssmax": {},
            "fixed": {"start": {"scale": 1.0}},
            "bias": {"form": "bias"},
        }[name]
        return self._trained(name, self._new("ssmax", name, **options), 0, self.steps, frozen=name == "fixed")

    def _new(self, architecture: str, name: str | None = None, **options: Any) -> Path:
        output = self.folder / f"{name or architecture}-new"
        if not output.is_dir():
            scale = self.scale
            sizes = {"layers": scale.layers, "heads": scale.heads, "width": scale.width, "length": scale.length}
            surgery.new(architecture, output, vocab_size=self.vocabulary, seed=self.seed, **sizes, **options)
        return output

    def _converted(self, source: Path, name: str) -> Path:
        output = self.folder / name
        if not output.is_dir():  # the start of `paper` is the one of the paper: the multiplier averages 1
            surgery.convert(source, "ssmax", form="paper", output=output)
        return output

    def _trained(self, name: str, start: Path, first: int, last: int, *, frozen: bool = False) -> Path:
        """Train from step ``first`` to step ``last`` on the rows of these steps."""
        output = self.folder / name
        if output.is_dir():
            return output
        model = load(start)
        if first == 0:
            draw_wider(model)
        if frozen:
            for module in model.modules():
                if type(module).__name__ == "SSMax":
                    module.requires_grad_(False)
        rows = self.rows[first * self.scale.sequences : last * self.scale.sequences]
        work = self.folder / f"{name}-run"
        fit(model, rows, self.scale, last - first, work, seed=self.seed, device=self.device)
        unfinished = self.folder / f"{name}-unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        unfinished.rename(output)
        return output
