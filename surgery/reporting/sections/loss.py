"""How the loss is shown: by position, or over whole documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from surgery.colours import VERDICTS
from surgery.reporting.drawing import Drawing, FigureRenderer
from surgery.reporting.figures import loss_by_position, paired_difference
from surgery.reporting.formats import bounds, count, interval, number, perplexity, signed, span
from surgery.reporting.sections.tables import new_table, title_of
from surgery.reporting.sections.view import KeyFigure
from surgery.words import counted

Plain = Mapping[str, Any]


def drawings(renderer: FigureRenderer, result: Plain, section: Plain) -> Iterator[Drawing]:
    """Loss by position, and the difference to the base of each model."""
    yield renderer(
        "loss-by-position",
        "Lines with markers: means of the buckets below. Faint lines: means of narrow ranges."
        + (" Above: the base. Below: what it changes, with intervals." if result["against"] is not None else ""),
        _describe_losses(result, section),
        partial(loss_by_position, result, section),
    )
    for own in section["results"] if result["against"] is not None else ():
        name = result["models"][own["model"]]["name"]
        yield renderer(
            "paired-difference",
            f"{name}, difference to the base. Bars: mean difference. Whiskers: interval. Hatched bars: undecided, "
            "or kept (within the grey band).",
            _describe_differences(own),
            partial(paired_difference, section, own),
        )


def table(result: Plain, section: Plain) -> RenderableType:
    """Losses by tokens seen, one table for each model."""
    paired = result["against"] is not None
    level = f"{result['interval']['level']:.0%} interval"
    # With these columns the table fits 80 characters.
    heads = ["loss", "base", "perplexity", "change", level] if paired else ["predictions", "loss", level, "perplexity"]
    tables = []
    for own in section["results"]:
        table = new_table(title_of(result, section, own), ["tokens seen", *heads], word=paired)
        for bucket in [*own["buckets"], own["overall"]]:
            last = bucket is own["overall"]
            cells = [Text("all" if last else span(bucket["first"], bucket["last"]))]
            if paired:
                values = [number(bucket["loss"]["value"]), number(bucket["base_loss"]["value"])]
                values += [perplexity(bucket["perplexity"]), signed(bucket["difference"]["value"])]
                cells += [Text(value) for value in (*values, interval(bucket["difference"]))]
                cells.append(Text(bucket["verdict"], style=VERDICTS[bucket["verdict"]]))
            else:
                values = [count(bucket["tokens"]), number(bucket["loss"]["value"]), bounds(bucket["loss"])]
                cells += [Text(value) for value in (*values, perplexity(bucket["perplexity"]))]
            table.add_row(*cells, style="bold" if last else "")
        tables.append(table)
    return Group(*tables)


def key_figure(section: Plain, own: Plain) -> KeyFigure:
    """Perplexity over all tokens."""
    label = "Perplexity, window of" if section["kind"] == "sliding" else "Perplexity to"
    overall = own["overall"]
    base = overall["base_perplexity"]
    return KeyFigure(
        f"{label} {count(section['data']['longest'])} tokens",
        perplexity(overall["perplexity"]),
        None if base is None else perplexity(base),
    )


def note(section: Plain) -> str:
    """The number of predictions, sequences and tokens left out."""
    data = section["data"]
    return (
        f"{counted(data['predictions'], 'prediction')} in {counted(data['sequences'], 'sequence')} of up to "
        f"{count(data['longest'])} tokens; {counted(data['left_out'], 'token')} left out."
    )


def _describe_losses(result: Plain, section: Plain) -> str:
    """First and last bucket of each model."""
    first = section["results"][0]["buckets"]
    shown = [(result["models"][own["model"]]["name"], own["buckets"], "loss") for own in section["results"]]
    if result["against"] is not None:
        shown.append((result["against"]["name"], first, "base_loss"))
    sentences = [
        f"{name}: {number(buckets[0][key]['value'])} with {span(buckets[0]['first'], buckets[0]['last'])} tokens "
        f"seen, {number(buckets[-1][key]['value'])} with {span(buckets[-1]['first'], buckets[-1]['last'])}."
        for name, buckets, key in shown
    ]
    return "Line chart of the loss by tokens seen. " + " ".join(sentences)


def _describe_differences(own: Plain) -> str:
    """Every bar with its interval."""
    bars = [
        f"{span(bucket['first'], bucket['last'])}: {signed(bucket['difference']['value'])}"
        f" ({interval(bucket['difference'])}), {bucket['verdict']}"
        for bucket in own["buckets"]
    ]
    overall = own["overall"]["difference"]
    return (
        f"Bar chart of the difference in loss, model - base, by tokens seen. {'; '.join(bars)}. "
        f"All tokens: {signed(overall['value'])} ({interval(overall)})."
    )
