"""How the statistics of attention are shown: by n, and by layer and head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from surgery.colours import LABEL
from surgery.reporting.cells import cells, extremes
from surgery.reporting.drawing import Drawing, FigureRenderer
from surgery.reporting.figures import attention_by_n, attention_maps, rejected_maps
from surgery.reporting.formats import (
    clipped,
    number,
    span,
)
from surgery.reporting.sections.tables import new_table

Plain = Mapping[str, Any]


def drawings(renderer: FigureRenderer, result: Plain, section: Plain) -> Iterator[Drawing]:
    """By n, by layer and head, and the rejected keys where an operation rejects keys."""
    yield renderer(
        "attention-by-n",
        "Means over all layers and heads. The shaded band holds the middle 80% of the heads.",
        _describe_attention(result, section),
        partial(attention_by_n, result, section),
    )
    yield renderer(
        "attention-maps",
        "One cell for each layer and head. "
        + ("Below the base, what a model differs from it by." if result["against"] is not None else ""),
        _describe_attention_maps(result, section),
        partial(attention_maps, result, section),
    )
    for own in section["results"]:
        if own["rejected_keys"] is not None:
            yield renderer(
                "rejected",
                "One cell for each layer and head. A layer without this operation rejects no keys.",
                _describe_rejected(own),
                partial(rejected_maps, section, own),
            )


def table(result: Plain, section: Plain) -> RenderableType:
    """Greatest weight and entropy of each model, at powers of two of n."""
    names = [
        result["against"]["name"] if own["model"] == len(result["models"]) else result["models"][own["model"]]["name"]
        for own in section["results"]
    ]
    marks = [str(place) for place in range(1, len(names) + 1)] if len(names) > 1 else [""]
    heads = [f"{what} {mark}".rstrip() for mark in marks for what in ("greatest", "entropy")]
    table = new_table(section["title"], ["n", *heads])
    powers = [row for row, (first, last) in enumerate(section["ranges"]) if (last & (last - 1)) == 0 or row == 0]
    for row in dict.fromkeys([*powers, len(section["ranges"]) - 1]):
        cells = [span(*section["ranges"][row])]
        for own in section["results"]:
            cells += [number(own["by_n"][row]["greatest"], 3), number(own["by_n"][row]["entropy"], 2)]
        table.add_row(*map(Text, cells))
    models = ", ".join(f"{mark} {clipped(name)}".lstrip() for mark, name in zip(marks, names, strict=True))
    return Group(table, Text(models, style=LABEL))


def _describe_attention(result: Plain, section: Plain) -> str:
    """Greatest weight and entropy in the first and last range of n."""
    sentences = []
    for own in section["results"]:
        use = result["against"] if own["model"] == len(result["models"]) else result["models"][own["model"]]
        first, last = own["by_n"][0], own["by_n"][-1]
        start, end = span(first["first"], first["last"]), span(last["first"], last["last"])
        sentences.append(
            f"{use['name']}: greatest weight {number(first['greatest'], 3)} at n = {start} and "
            f"{number(last['greatest'], 3)} at n = {end}; entropy at the longest n {number(last['entropy'], 2)} nats."
        )
    return "Line charts of the greatest attention weight and of the entropy by n. " + " ".join(sentences)


def _describe_attention_maps(result: Plain, section: Plain) -> str:
    """The extremes of each map."""
    sentences = []
    for own in section["results"]:
        use = result["against"] if own["model"] == len(result["models"]) else result["models"][own["model"]]
        found = cells(own["layers"], None, [[head[-1] for head in layer] for layer in own["greatest"]])
        sentences.append(f"{use['name']}: {extremes(found, lambda value: number(value, 3))}")
    return "Heat maps of the greatest weight by layer and head at the longest n. " + " ".join(sentences)


def _describe_rejected(own: Plain) -> str:
    """Means over all heads of the layers where an operation rejects keys."""
    means = []
    for key, what in (("rejected_keys", "keys"), ("rejected_blocks", "whole blocks")):
        values = [value for layer in own[key] if layer is not None for value in layer]
        means.append(f"{sum(values) / len(values):.1%} of {what}")
    return f"Heat maps of the rejected keys by layer and head: on average {' and '.join(means)}."
