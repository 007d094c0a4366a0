"""Curves of a training run, drawn from the rows of its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure


def draw_training_log(
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    controls: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """Draw loss, learning rates and the operation's parameters by layer over the steps, as a PNG.

    Where rows have the share of rejected keys, it has axes of its own.

    Args:
        rows: of ``log.jsonl``: ``step``, and ``loss``, ``learning_rates``, ``scale`` and ``rejected``, or
            ``held_out_loss`` and ``held_out_rejected``. Rows of a later stage have its number as ``stage``; a
            dotted line marks where it begins.
        path: of the picture.
        controls: rows of each control, by name.
    """
    steps = [row for row in rows if "loss" in row]
    held_out = [row for row in rows if "held_out_loss" in row]
    borders = [row["step"] - 0.5 for last, row in pairwise(steps) if row.get("stage", 1) != last.get("stage", 1)]
    kinds = sorted({kind for row in steps for kind in row.get("scale", {})})
    rejecting = any("rejected" in row for row in steps)
    count = 2 + len(kinds) + rejecting
    figure = Figure(figsize=(4.2 * count, 3.4), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]

    axes[0].plot([row["step"] for row in steps], [row["loss"] for row in steps], label="training", linewidth=1)
    if held_out:
        axes[0].plot(
            [row["step"] for row in held_out], [row["held_out_loss"] for row in held_out], "o-", label="held out"
        )
    for name, others in (controls or {}).items():
        losses = [row for row in others if "loss" in row]
        axes[0].plot(
            [row["step"] for row in losses], [row["loss"] for row in losses], label=f"{name}, training", linewidth=0.7
        )
    axes[0].set_ylabel("loss (nats per token)" if len(borders) == 0 else "objective of the stage")
    axes[0].legend()
    for name in sorted({name for row in steps for name in row["learning_rates"]}):
        own = [row for row in steps if name in row["learning_rates"]]
        axes[1].plot([row["step"] for row in own], [row["learning_rates"][name] for row in own], label=name)
    axes[1].set_ylabel("learning rate")
    if any(rate > 0 for row in steps for rate in row["learning_rates"].values()):  # a single step may have a rate of 0
        axes[1].set_yscale("log", nonpositive="mask")
    if steps:
        axes[1].legend()
    if rejecting:
        _rejected(axes[2], rows)
    for axis, kind in zip(axes[2 + rejecting :], kinds, strict=True):
        _by_layer(axis, steps, kind)
    for axis in axes:
        axis.set_xlabel("step")
        for border in borders:
            axis.axvline(border, color="grey", linestyle=":", linewidth=0.8)
        axis.grid(alpha=0.3)
    # No date and no version, so that the same log gives the same picture.
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def _rejected(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Share of rejected keys in the text of each step and in the held-out text."""
    for key, label, line in (("rejected", "training", "-"), ("held_out_rejected", "held out", "o-")):
        own = [row for row in rows if key in row]
        if own:
            shares = [100 * row[key] for row in own]
            axis.plot([row["step"] for row in own], shares, line, label=label, linewidth=1)
    axis.set_ylabel("keys rejected (%)")
    axis.legend()


def _by_layer(axis: Any, steps: Sequence[Mapping[str, Any]], kind: str) -> None:
    """Mean over heads, one line for each layer, coloured from the first layer to the last."""
    layers = sorted({int(layer) for row in steps for layer in row.get("scale", {}).get(kind, {})})
    for position, layer in enumerate(layers):
        own = [row for row in steps if str(layer) in row.get("scale", {}).get(kind, {})]
        values = [row["scale"][kind][str(layer)][0] for row in own]
        colour = colormaps["viridis"](position / max(1, len(layers) - 1))
        axis.plot([row["step"] for row in own], values, color=colour, linewidth=0.8)
    axis.set_ylabel(f"{kind}, mean over heads")
    if layers:
        axis.set_title(f"layers {layers[0]} (dark) to {layers[-1]} (light)", fontsize="small")
