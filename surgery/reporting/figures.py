"""The pictures, each a function of plain data and a theme that returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from surgery.reporting.theme import Theme, grid, new_figure
from surgery.reporting.wording import clipped, count, signed, span

Plain = Mapping[str, Any]

_FIRST_DRAWN = 8


def loss_by_position(result: Plain, theme: Theme) -> Figure:
    """Loss against the number of tokens seen: fine means behind, bucket means in front."""
    figure = new_figure()
    axes = figure.subplots()
    grid(axes, theme)
    lines = [("loss", result["model"]["name"], theme.model, "o", "-")]
    if result["against"] is not None:
        lines.insert(0, ("base_loss", result["against"]["name"], theme.base, "s", "--"))
    buckets = result["buckets"]
    # The first few tokens of a text are guesses; their losses would flatten everything else.
    curve = [point for point in result["curve"] if point["last"] >= _FIRST_DRAWN] or result["curve"]
    for key, name, colour, marker, style in lines:
        fine = [point[key] for point in curve]
        axes.plot([_middle(point) for point in curve], fine, color=colour, linewidth=0.9, alpha=0.4)
        axes.plot(
            [_middle(bucket) for bucket in buckets],
            [bucket[key]["value"] for bucket in buckets],
            color=colour,
            linestyle=style,
            linewidth=1.8,
            marker=marker,
            markersize=5.5 if key == "loss" else 8,
            markerfacecolor=colour if key == "loss" else "none",
            label=clipped(name),
        )
    _tokens_axis(axes, max(2, result["data"]["longest"] - 1))
    axes.set_xlabel("tokens seen before the prediction")
    axes.set_ylabel("loss (nats per token)")
    axes.legend()
    return figure


def paired_difference(result: Plain, theme: Theme) -> Figure:
    """Model minus base on the same tokens, per bucket and over all, with intervals."""
    buckets = [*result["buckets"], result["overall"]]
    margin = result["verdict"]["margin"]
    figure = new_figure(height=3.2)
    axes = figure.subplots()
    grid(axes, theme)
    axes.axhspan(-margin, margin, color=theme.plain, alpha=0.22, linewidth=0, label="counts as kept")
    axes.axhline(0, color=theme.ink, linewidth=0.9)
    colours = {"lost": theme.worse, "gained": theme.better}
    places = [*range(len(buckets) - 1), len(buckets) - 0.6]
    for place, bucket in zip(places, buckets, strict=True):
        value, low, high = (bucket["difference"][key] for key in ("value", "low", "high"))
        decided = bucket["verdict"] in colours
        colour = colours.get(bucket["verdict"], theme.plain)
        axes.bar(
            place,
            value,
            width=0.62,
            color=colour if decided else "none",
            edgecolor=colour,
            hatch="" if decided else "////",
            linewidth=1,
        )
        if low is not None:
            axes.errorbar(
                place, value, [[value - low], [high - value]], color=theme.ink, capsize=4, linewidth=1.3, capthick=1.3
            )
        top = max(value, high if high is not None else value, 0)
        axes.annotate(
            signed(value),
            (place, top),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=theme.ink,
        )
    labels = [span(bucket["first"], bucket["last"]) for bucket in buckets[:-1]]
    words = [bucket["verdict"] for bucket in buckets]
    axes.set_xticks(places, [f"{label}\n{word}" for label, word in zip([*labels, "all"], words, strict=True)])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(round(value, 10), _digits(axes))))
    axes.margins(y=0.14)
    axes.set_xlabel("tokens seen before the prediction")
    axes.set_ylabel("loss, model minus base")
    axes.legend(loc="best")
    return figure


def scale_map(learned: Plain, theme: Theme) -> Figure:
    """Each learned number by layer and head; the start value has the page's own tone."""
    parts = [(name, np.array(learned[name])) for name in ("scale", "bias") if len(learned[name])]
    layers, heads = learned["layers"], learned["heads"]
    height = min(8.0, 0.9 + 0.2 * max(4, len(heads)))
    figure = new_figure(height=height * len(parts))
    negative = {(head["layer"], head["head"]) for head in learned["negative_heads"]}
    for axes, (name, values) in zip(figure.subplots(len(parts), squeeze=False)[:, 0], parts, strict=True):
        start = learned["start"].get(name, 0.0)
        reach = float(np.abs(values - start).max()) or 0.1
        image = axes.imshow(
            values.T,
            aspect="auto",
            interpolation="nearest",
            cmap=theme.diverging(),
            vmin=start - reach,
            vmax=start + reach,
        )
        marked = [(x, y) for x, layer in enumerate(layers) for y, head in enumerate(heads) if (layer, head) in negative]
        if marked:
            axes.scatter(*zip(*marked, strict=True), s=5, color=theme.ink, linewidths=0)
        _numbered(axes, "x", layers, 30)
        _numbered(axes, "y", heads, 12)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("layer")
        axes.set_ylabel("head")
        bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.04)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        bar.ax.yaxis.set_major_locator(MaxNLocator(5))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(round(value, 6), 3)))
        axes.set_title(f"{name}, from its start at {start:g}")
    return figure


def multiplier_curves(learned: Plain, theme: Theme) -> Figure:
    """m(n) of every head: lines are exact between the points, since m is linear in ln n."""
    points = learned["multipliers"]
    contexts = [point["n"] for point in points]
    values = np.array([point["values"] for point in points]).reshape(len(points), -1)
    figure = new_figure(height=3.0)
    axes = figure.subplots()
    grid(axes, theme)
    axes.plot(contexts, values, color=theme.model, linewidth=0.7, alpha=max(0.08, min(0.5, 40 / values.shape[1])))
    axes.plot([], [], color=theme.model, linewidth=0.9, alpha=0.6, label="each head")
    axes.plot(contexts, np.median(values, axis=1), color=theme.model, linewidth=2.4, label="median head")
    axes.axhline(1, color=theme.ink, linewidth=1.1, linestyle="--", label="plain softmax")
    if values.min() < 0:
        axes.axhspan(min(axes.get_ylim()[0], float(values.min())), 0, color=theme.worse, alpha=0.12, linewidth=0)
    axes.axvline(learned["reference_length"], color=theme.quiet, linewidth=0.9, linestyle=":")
    _tokens_axis(axes, contexts[-1])
    axes.set_xlabel(f"n, keys that the query may attend to (dotted: N = {count(learned['reference_length'])})")
    axes.set_ylabel("multiplier m(n)")
    axes.legend(loc="upper center", ncols=3)
    return figure


def training_curves(rows: Sequence[Plain], theme: Theme) -> Figure:
    """Loss by step, raw and smoothed, held-out loss where it was logged, and the learning rate below."""
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
    """Whether there is anything to draw."""
    return len(_column(rows, "loss")[0]) > 0


def _middle(bucket: Plain) -> float:
    return float(np.sqrt(bucket["first"] * bucket["last"]))


def _tokens_axis(axes: Axes, last: int) -> None:
    axes.set_xscale("log", base=2)
    first = axes.get_xlim()[0]
    powers = [2**power for power in range(0, 40, 1 if last < 2**6 else 2) if first <= 2**power <= last * 1.1]
    axes.set_xticks(powers, [count(power) for power in powers])
    axes.xaxis.set_minor_locator(NullLocator())


def _numbered(axes: Axes, which: str, names: Sequence[int], most: int) -> None:
    every = -(-len(names) // most)
    places = range(0, len(names), every)
    set_ticks = axes.set_xticks if which == "x" else axes.set_yticks
    set_ticks(list(places), [str(names[place]) for place in places])


def _digits(axes: Axes) -> int:
    low, high = axes.get_ylim()
    return max(2, min(8, int(2 - np.floor(np.log10(max(high - low, 1e-8))))))


def _column(rows: Sequence[Plain], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have a finite number there."""
    pairs = []
    for row in rows:
        step, value = row.get("step"), row.get(key)
        if all(isinstance(item, int | float) and np.isfinite(item) for item in (step, value)):
            pairs.append((float(step), float(value)))  # type: ignore[arg-type]
    pairs.sort()
    return [step for step, _ in pairs], [value for _, value in pairs]


def _with_rate(row: Plain, group: str | None) -> Plain:
    """The row with the learning rate of one group of parameters, where it has one for each."""
    return row if group is None else {**row, "learning_rate": (row.get("learning_rates") or {}).get(group)}


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Centred running mean over about a tenth of the run, shorter at the ends."""
    reach = max(1, len(values) // 20)
    return np.array([np.mean(values[max(0, at - reach) : at + reach + 1]) for at in range(len(values))])
