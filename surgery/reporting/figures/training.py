"""Curves of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from surgery.reporting.theme import Theme, grid, new_figure

Plain = Mapping[str, Any]


def training_curves(rows: Sequence[Plain], theme: Theme) -> Figure:
    """Loss by step, raw and smoothed, held-out loss if it was logged, and the learning rate below."""
    figure = new_figure(height=3.8)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for axes in (above, below):
        grid(axes, theme)
    steps, losses = _column(rows, "loss")
    above.plot(steps, losses, color=theme.model, linewidth=0.9, alpha=0.45, label="training loss")
    if len(losses) >= 8:
        above.plot(steps, _smooth(losses), color=theme.model, linewidth=2, label="smoothed")
    held_steps, held = _column(rows, "held_out_loss")
    if held:
        above.plot(held_steps, held, color=theme.base, marker="s", linestyle="--", label="held-out loss")
    above.set_ylabel("loss (nats per token)")
    above.legend()
    groups = sorted({name for row in rows for name in row.get("learning_rates") or ()})
    for name, style in zip(groups or [None], ("-", "--", ":", "-."), strict=False):
        rate_steps, rates = _column([_with_rate(row, name) for row in rows], "learning_rate")
        below.plot(rate_steps, rates, color=theme.quiet, linewidth=1.4, linestyle=style, label=name)
    if len(groups) > 1:
        below.legend()
    below.set_ylim(bottom=0)
    below.yaxis.set_major_locator(MaxNLocator(3))
    below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.set_ylabel("rate")
    below.set_xlabel("step")
    return figure


def has_training_losses(rows: Sequence[Plain]) -> bool:
    """Whether the rows hold a loss."""
    return len(_column(rows, "loss")[0]) > 0


def _column(rows: Sequence[Plain], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows with a finite number under ``key``."""
    pairs = []
    for row in rows:
        step, value = row.get("step"), row.get(key)
        if all(isinstance(item, int | float) and np.isfinite(item) for item in (step, value)):
            pairs.append((float(step), float(value)))  # type: ignore[arg-type]
    pairs.sort()
    return [step for step, _ in pairs], [value for _, value in pairs]


def _with_rate(row: Plain, group: str | None) -> Plain:
    """The row with the learning rate of one parameter group, if it has several."""
    return row if group is None else {**row, "learning_rate": (row.get("learning_rates") or {}).get(group)}


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Centred running mean over about a tenth of the run, shorter at the ends."""
    reach = max(1, len(values) // 20)
    return np.array([np.mean(values[max(0, at - reach) : at + reach + 1]) for at in range(len(values))])
