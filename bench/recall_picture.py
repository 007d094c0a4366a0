"""The picture of `bench.recall`: answers found by length, for each model.

python -m bench.recall_picture docs/results/data/recall-text-alone.json docs/results/images/recall.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from surgery.reporting.theme import LIGHT, drawn_in, grid, new_figure, to_png

# Figure, title of its axes, and the unit of its values.
PANELS = (("right answers", "answers right", 100.0), ("log-probability", "log-probability of an answer", 1.0))
# Model, label, and how its line looks.
LINES = (
    ("source", "source", LIGHT.base, "s", "--"),
    ("sharpened", "every head sharpened alike", LIGHT.quiet, "x", ":"),
    ("temperature", "a temperature per head", LIGHT.series[1], "v", ":"),
    ("bias", "b + s ln n and a gain per head", LIGHT.series[2], "^", "-."),
    ("constant", "a temperature and a gain per head", LIGHT.model, "o", "-"),
)


def values(rows: list[dict[str, Any]], model: str, figure: str) -> list[tuple[int, float]]:
    """Tokens and value of a model, the mean over its seeds; the source is the base of every row."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["measure"] != "recall" or row["minus"] != "source" or row["figure"] != figure:
            continue
        if model == "source" or row["model"].partition("-")[0] == model:
            found.setdefault(row["tokens"], []).append(row["base" if model == "source" else "value"])
    return [(tokens, sum(own) / len(own)) for tokens, own in sorted(found.items())]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw both figures side by side, as a PNG."""
    with drawn_in(LIGHT):
        canvas = new_figure(height=3.4)
        for axes, (figure, title, unit) in zip(canvas.subplots(1, 2), PANELS, strict=True):
            grid(axes, LIGHT)
            for model, label, colour, marker, dashes in LINES:
                points = values(rows, model, figure)
                if not points:
                    continue
                axes.plot(
                    [tokens for tokens, _ in points],
                    [unit * value for _, value in points],
                    color=colour,
                    marker=marker,
                    linestyle=dashes,
                    markersize=4,
                    label=label,
                )
            ticks = [tokens for tokens, _ in values(rows, "source", figure)]
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axes.minorticks_off()
            axes.set_xlabel("tokens of the text")
            axes.set_title(title + (", %" if unit == 100 else ""))
        canvas.axes[0].set_ylim(bottom=0)
        canvas.axes[0].legend()
        path.write_bytes(to_png(canvas, LIGHT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.json.read_text(encoding="utf-8"))["rows"], options.picture)
    print(f"wrote {options.picture}")


if __name__ == "__main__":
    main()
