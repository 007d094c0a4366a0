"""The result as a summary for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from surgery.colours import LABEL, NOTE, VERDICTS
from surgery.reporting.wording import (
    HEADLINES,
    TIMES,
    bounds,
    clipped,
    count,
    counted,
    interval,
    number,
    percent,
    perplexity,
    signed,
    span,
    typographic,
)

Plain = Mapping[str, Any]


def terminal_summary(result: Plain) -> RenderableType:
    """Verdicts, one table for each section and what was learned, for ``rich``; all text is literal, never markup."""
    parts: list[RenderableType] = []
    for verdict in result["verdicts"]:
        headline = Text(HEADLINES[verdict["word"]], style=VERDICTS[verdict["word"]])
        if len(result["models"]) > 1:
            headline.append(f"  {clipped(result['models'][verdict['model']]['name'])}", style="not bold default")
        parts.append(headline)
        for finding in verdict["findings"]:
            line = Text("  ").append(finding["word"], style=VERDICTS[finding["word"]])
            parts.append(line.append(f"  {finding['measure']}. {typographic(finding['sentence'])}"))
        parts.append(Text())
    tables = {
        "loss": _losses,
        "sliding": _losses,
        "retrieval": _retrieval,
        "attention": _attention,
        "tasks": _tasks,
        "speed": _speed,
    }
    for section in result["sections"]:
        parts += [tables[section["kind"]](result, section), Text()]
    parts.append(_below(result))
    parts += [Text(f"note: {warning}", style=NOTE) for warning in result["warnings"]]
    return Group(*parts)


def _table(title: str, heads: Sequence[str], *, word: bool = False) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, header_style=LABEL)
    for head in heads:
        table.add_column(Text(head), justify="right", no_wrap=True)
    if word:
        table.add_column("", no_wrap=True)
    return table


def _title(result: Plain, section: Plain, own: Plain) -> str:
    """The section, and the model where there are several."""
    name = clipped(result["models"][own["model"]]["name"])
    return section["title"] + (f": {name}" if len(result["models"]) > 1 else "")


def _losses(result: Plain, section: Plain) -> RenderableType:
    paired = result["against"] is not None
    level = f"{result['interval']['level']:.0%} interval"
    # With these columns the table fits 80 characters.
    heads = ["loss", "base", "perplexity", "change", level] if paired else ["predictions", "loss", level, "perplexity"]
    tables = []
    for own in section["results"]:
        table = _table(_title(result, section, own), ["tokens seen", *heads], word=paired)
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


def _retrieval(result: Plain, section: Plain) -> RenderableType:
    paired = result["against"] is not None
    level = f"{result['interval']['level']:.0%} interval"
    # With these columns the table fits 80 characters.
    heads = ["right", "base", "whole", "change", level] if paired else ["prompts", "right", level, "whole", "loss"]
    tables = []
    for own in section["results"]:
        table = _table(_title(result, section, own), ["tokens", *heads], word=paired)
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
    return Group(*tables)


def _attention(result: Plain, section: Plain) -> RenderableType:
    names = [
        result["against"]["name"] if own["model"] == len(result["models"]) else result["models"][own["model"]]["name"]
        for own in section["results"]
    ]
    marks = [str(place) for place in range(1, len(names) + 1)] if len(names) > 1 else [""]
    heads = [f"{what} {mark}".rstrip() for mark in marks for what in ("greatest", "entropy")]
    table = _table(section["title"], ["n", *heads])
    powers = [row for row, (first, last) in enumerate(section["ranges"]) if (last & (last - 1)) == 0 or row == 0]
    for row in dict.fromkeys([*powers, len(section["ranges"]) - 1]):
        cells = [span(*section["ranges"][row])]
        for own in section["results"]:
            cells += [number(own["by_n"][row]["greatest"], 3), number(own["by_n"][row]["entropy"], 2)]
        table.add_row(*map(Text, cells))
    models = ", ".join(f"{mark} {clipped(name)}".lstrip() for mark, name in zip(marks, names, strict=True))
    return Group(table, Text(models, style=LABEL))


def _tasks(result: Plain, section: Plain) -> RenderableType:
    paired = result["against"] is not None
    parts: list[RenderableType] = []
    for own in section["results"]:
        heads = ["score", *(["base", "change", "interval"] if paired else [])]
        table = _table(_title(result, section, own), ["metric", *heads], word=paired)
        table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"  # names of tasks can be long
        for score in own["scores"]:
            values = [score["metric"], number(score["value"])]
            if paired:
                change = score["difference"]
                values += [number(score["base_value"]), signed(change["value"] if change else None), interval(change)]
            cells = [Text(value) for value in values]
            cells += [Text(score["verdict"] or "", style=VERDICTS.get(score["verdict"], ""))] if paired else []
            table.add_row(*cells)
        parts += [table, Text("The plain lm-eval commands that give the same:", style=LABEL)]
        parts += [Text(command, style=LABEL, no_wrap=True, overflow="ignore") for command in own["commands"]]
    return Group(*parts)


def _speed(result: Plain, section: Plain) -> RenderableType:
    paired = result["against"] is not None
    parts: list[RenderableType] = []
    for own in section["results"]:
        table = _table(
            _title(result, section, own), ["case", "tokens/s", *(["base", "time, base = 1"] if paired else [])]
        )
        for case in own["cases"]:
            values = [case["case"], number(case["rate"], 1)]
            values += [number(case["base_rate"], 1), number(case["time_ratio"], 3)] if paired else []
            table.add_row(*map(Text, values))
        parts.append(table)
    return Group(*parts)


def _below(result: Plain) -> Text:
    text = Text()
    for section in result["sections"]:
        if section["kind"] == "loss":
            data = section["data"]
            text.append(
                f"{counted(data['predictions'], 'prediction')} in {counted(data['sequences'], 'sequence')} of up to "
                f"{count(data['longest'])} tokens; {counted(data['left_out'], 'token')} left out.\n",
                style=LABEL,
            )
    for use in result["models"]:
        for learned in use["learned"]:
            text.append(f"{clipped(use['name'])}: ")
            text.append(f"{learned['name']} {learned['form']}: {len(learned['layers'])} layers {TIMES} ")
            text.append(f"{len(learned['heads'])} heads")
            if learned["moved_most"] is not None:
                text.append(
                    f", moved by {number(learned['moved_mean'])} on average, {number(learned['moved_most'])} at most"
                )
            negative = len(learned["negative_heads"])
            text.append(f"; {counted(negative, 'head')} with a negative multiplier somewhere\n" if negative else "\n")
    text.rstrip()
    return text
