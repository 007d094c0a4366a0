"""How retrieval is shown: by length and depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from surgery.colours import VERDICTS
from surgery.reporting.drawing import Drawing, FigureRenderer
from surgery.reporting.figures import retrieval_maps
from surgery.reporting.formats import (
    bounds,
    count,
    interval,
    number,
    percent,
    signed,
)
from surgery.reporting.sections.tables import new_table, title_of
from surgery.reporting.sections.view import KeyFigure

Plain = Mapping[str, Any]


def drawings(renderer: FigureRenderer, result: Plain, section: Plain) -> Iterator[Drawing]:
    """One map for each model."""
    yield renderer(
        f"retrieval-{section['options']['task']}",
        "Share of right answer tokens, by length and depth. A star: every answer of the cell is right.",
        _describe_retrieval(result, section),
        partial(retrieval_maps, result, section),
    )


def table(result: Plain, section: Plain) -> RenderableType:
    """Scores by length, one table for each model."""
    paired = result["against"] is not None
    level = f"{result['interval']['level']:.0%} interval"
    # With these columns the table fits 80 characters.
    heads = ["right", "base", "whole", "change", level] if paired else ["prompts", "right", level, "whole", "loss"]
    tables = []
    for own in section["results"]:
        table = new_table(title_of(result, section, own), ["tokens", *heads], word=paired)
        for score in [*own["by_length"], own["overall"]]:
            last = score["length"] is None
            right, exact = percent(score["right"]["value"]), percent(score["exact"]["value"])
            if paired:
                values = [right, percent(score["base_right"]["value"]), exact, signed(score["difference"]["value"])]
                values.append(interval(score["difference"]))
            else:
                values = [
                    count(score["prompts"]),
                    right,
                    bounds(score["right"]),
                    exact,
                    number(score["loss"]["value"], 3),
                ]
            cells = [Text("all" if last else count(score["length"])), *map(Text, values)]
            cells += [Text(score["verdict"], style=VERDICTS[score["verdict"]])] if paired else []
            table.add_row(*cells, style="bold" if last else "")
        tables.append(table)
        tables.append(_log_probabilities(result, section, own, level))
    return Group(*tables)


def _log_probabilities(result: Plain, section: Plain, own: Plain, level: str) -> Table:
    """Log-probability of a whole answer by length."""
    paired = result["against"] is not None
    heads = ["log-probability", "base", "change", level] if paired else ["prompts", "log-probability", level]
    table = new_table(f"{title_of(result, section, own)}: log-probability of an answer", ["tokens", *heads], word=False)
    for score in [*own["by_length"], own["overall"]]:
        last = score["length"] is None
        value = number(score["log_probability"]["value"], 2)
        if paired:
            change = score["log_probability_difference"]
            base = number(score["base_log_probability"]["value"], 2)
            values = [value, base, signed(change["value"]), interval(change)]
        else:
            values = [count(score["prompts"]), value, bounds(score["log_probability"])]
        cells = [Text("all" if last else count(score["length"])), *map(Text, values)]
        table.add_row(*cells, style="bold" if last else "")
    return table


def key_figure(section: Plain, own: Plain) -> KeyFigure:
    """The share of right answer tokens, over all prompts."""
    overall = own["overall"]
    base = overall["base_right"]
    return KeyFigure(
        f"{section['title']}, right",
        percent(overall["right"]["value"]),
        None if base is None else percent(base["value"]),
    )


def _describe_retrieval(result: Plain, section: Plain) -> str:
    """The mean of each length."""
    shown = [(result["models"][own["model"]]["name"], own["by_length"], "right") for own in section["results"]]
    if result["against"] is not None and section["results"][0]["base_right"] is not None:
        shown.append((result["against"]["name"], section["results"][0]["by_length"], "base_right"))
    sentences = [
        f"{name}: "
        + "; ".join(f"{score[key]['value']:.0%} at {count(score['length'])} tokens" for score in scores)
        + "."
        for name, scores, key in shown
    ]
    return f"Heat maps of {section['title']}: share of right answer tokens. {' '.join(sentences)}"
