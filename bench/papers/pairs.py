"""A Multiscreen model and Llama-like models of as many parameters, each trained as its paper says.

multiscreen    the model of arXiv 2604.01178    ssmax         softmax with SSMax from the start
softmax        the Llama-like model             ssmax-nope    ssmax without positions
nope           softmax without positions
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import surgery
from bench.papers.runs import Scale, draw_wider, fit, load, remove_positions, softmax_optimizer
from surgery.data import Row
from surgery.models import plan_new
from surgery.training import DivergedError, TrainingFolder
from surgery.training.options import AdamW


class Kind(NamedTuple):
    """What a model is made of."""

    architecture: str  # of `surgery new`
    positions: bool = True


class Trained(NamedTuple):
    """A model after its training, and its losses on held-out rows during the training.

    Attributes:
        model: None if its loss or gradient was not finite.
        curve: trained tokens and loss of each measurement.
    """

    model: Any
    curve: list[dict[str, float]]


KINDS = {
    "multiscreen": Kind("multiscreen"),
    "softmax": Kind("softmax"),
    "ssmax": Kind("ssmax"),
    "nope": Kind("softmax", positions=False),
    "ssmax-nope": Kind("ssmax", positions=False),
}
NAMES = ("multiscreen", "softmax")  # the two that the paper of Multiscreen compares
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
    sizes = sizes_of(name, scale, vocabulary)
    return plan_new(KINDS[name].architecture, sizes, vocab_size=vocabulary).parameters


def optimizer_of(name: str, steps: int, lr: float) -> AdamW:
    """Multiscreen: no decay, no clipping. Llama-like: decay of matrices and clipping at 1, as in the paper of SSMax."""
    optimizer = softmax_optimizer(steps, lr)
    return optimizer.model_copy(update={"weight_decay": 0.0, "clip": 0.0}) if name == "multiscreen" else optimizer


def trained(
    name: str,
    scale: Scale,
    rows: Sequence[Row],
    vocabulary: int,
    folder: Path,
    *,
    lr: float,
    seed: int,
    device: str,
    held_out: Sequence[Row] = (),
    every: int = 0,
) -> Trained:
    """Train a model, or go on with its training; see :func:`fit` for ``held_out`` and ``every``."""
    kind = KINDS[name]
    start, work = folder / "new", folder / "run"
    if not start.is_dir():
        surgery.new(kind.architecture, start, vocab_size=vocabulary, seed=seed, **sizes_of(name, scale, vocabulary))
    model = load(start)
    if name != "multiscreen":
        draw_wider(model)
    if not kind.positions:
        remove_positions(model)
    optimizer = optimizer_of(name, scale.steps, lr)
    measuring: dict[str, Any] = {"held_out": held_out, "every": every}
    try:
        curve = fit(model, rows, scale, scale.steps, work, seed=seed, device=device, optimizer=optimizer, **measuring)
    except DivergedError:
        TrainingFolder(work).remove()
        return Trained(None, [])
    return Trained(model.eval(), curve)
