"""A Multiscreen model and a Llama-like model of as many parameters, each trained as its paper says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import surgery
from bench.papers.runs import Scale, draw_wider, fit, load, softmax_optimizer
from surgery.data import Row
from surgery.models import plan_new
from surgery.training import DivergedError, TrainingFolder
from surgery.training.options import AdamW

NAMES = ("multiscreen", "softmax")
LAYERS, HEADS = 4, 4  # of the Llama-like model: deeper than wide is the better shape at these sizes


def twin_sizes(parameters: int, vocabulary: int, length: int) -> dict[str, int]:
    """Sizes of a Llama-like model whose number of parameters is nearest to ``parameters``.

    The width inside the MLP is two to four times the width. Of equally near models the one whose share is nearest to
    8/3 is taken.
    """
    found: list[tuple[int, float, dict[str, int]]] = []
    for width in range(2 * HEADS, 4096, 2 * HEADS):
        sizes = {"layers": LAYERS, "heads": HEADS, "width": width, "length": length}
        if plan_new("softmax", {**sizes, "mlp_width": 2 * width}, vocab_size=vocabulary).parameters > 2 * parameters:
            break
        for inner in range(2 * width, 4 * width + 1, 8):
            count = plan_new("softmax", {**sizes, "mlp_width": inner}, vocab_size=vocabulary).parameters
            found.append((abs(count - parameters), abs(inner / width - 8 / 3), {**sizes, "mlp_width": inner}))
    return min(found, key=lambda one: one[:2])[2]


def sizes_of(name: str, scale: Scale, vocabulary: int) -> dict[str, int]:
    """The options of `surgery new NAME`."""
    own = {"psi": scale.psi, "length": scale.length}
    if name == "multiscreen":
        return own
    return twin_sizes(plan_new("multiscreen", own, vocab_size=vocabulary).parameters, vocabulary, scale.length)


def parameters_of(name: str, scale: Scale, vocabulary: int) -> int:
    """The number of parameters."""
    return plan_new(name, sizes_of(name, scale, vocabulary), vocab_size=vocabulary).parameters


def optimizer_of(name: str, steps: int, lr: float) -> AdamW:
    """Multiscreen: no decay, no clipping. Llama-like: decay of matrices and clipping at 1, as in the paper of SSMax."""
    optimizer = softmax_optimizer(steps, lr)
    return optimizer.model_copy(update={"weight_decay": 0.0, "clip": 0.0}) if name == "multiscreen" else optimizer


def trained(
    name: str, scale: Scale, rows: Sequence[Row], vocabulary: int, folder: Path, *, lr: float, seed: int, device: str
) -> Any:
    """The model after the training; None if its loss or gradient was not finite."""
    start, work = folder / "new", folder / "run"
    if not start.is_dir():
        surgery.new(name, start, vocab_size=vocabulary, seed=seed, **sizes_of(name, scale, vocabulary))
    model = load(start)
    if name != "multiscreen":
        draw_wider(model)
    optimizer = optimizer_of(name, scale.steps, lr)
    try:
        fit(model, rows, scale, scale.steps, work, seed=seed, device=device, optimizer=optimizer)
    except DivergedError:
        TrainingFolder(work).remove()
        return None
    return model.eval()
