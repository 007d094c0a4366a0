"""How the learned parameters of an operation are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from surgery.reporting.cells import cells, extremes
from surgery.reporting.drawing import Drawing, FigureRenderer
from surgery.reporting.figures import multiplier_curves, parameter_map
from surgery.reporting.formats import TIMES, count, number, signed

Plain = Mapping[str, Any]


def drawings(renderer: FigureRenderer, learned: Plain) -> Iterator[Drawing]:
    """Parameters by layer and head, where any differs from its start, and the multiplier by n."""
    if learned["values"] and learned["moved_most"] != 0:
        dotted = " Cells with a dot: the multiplier is negative for some n within the measured length."
        origin = "start" if learned["start"] else "median"
        yield renderer(
            f"{learned['name']}-{next(iter(learned['values']))}",
            f"One cell for each layer and head. Blue: below the {origin} value. Orange: above it."
            + (dotted if learned["negative_heads"] else ""),
            _describe_parameters(learned),
            partial(parameter_map, learned),
        )
    if learned["multipliers"]:
        yield renderer(
            f"{learned['name']}-multiplier",
            "The factor on the queries of each head. Above 1 attention is sharper than softmax alone, below 1 flatter.",
            _describe_multipliers(learned),
            partial(multiplier_curves, learned),
        )


def _describe_parameters(learned: Plain) -> str:
    """The extremes of each parameter, and where they are."""
    sentences = []
    for name, rows in learned["values"].items():
        found = cells(learned["layers"], learned["heads"], rows)
        sentences.append(f"{name}: {extremes(found, signed)}")
    size = f"{len(learned['layers'])} {TIMES} {len(learned['heads'])}"
    return f"Heat map of {' and '.join(learned['values'])} by layer and head ({size}). " + " ".join(sentences)


def _describe_multipliers(learned: Plain) -> str:
    """The median and the extremes at each n."""
    points = [
        f"n = {count(point['n'])}: {number(point['smallest'], 3)} to {number(point['largest'], 3)}, "
        f"median {number(point['median'], 3)}"
        for point in learned["multipliers"]
    ]
    return f"Lines of the multiplier of each head against n. {'; '.join(points)}."
