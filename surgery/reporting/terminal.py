"""The result as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from surgery.reporting.wording import (
    HEADLINES,
    TIMES,
    clipped,
    count,
    counted,
    interval,
    number,
    perplexity,
    signed,
    span,
    typographic,
)

_STYLES = {"kept": "green", "gained": "bold blue", "lost": "bold red", "no difference": "green", "undecided": "yellow"}


def terminal_table(result: Mapping[str, Any]) -> RenderableType:
    """Verdict, loss by position and what was learned, for ``rich``; all text is literal, never markup."""
    parts: list[RenderableType] = []
    verdict = result["verdict"]
    if verdict is not None:
        line = Text(HEADLINES[verdict["word"]], style=_STYLES[verdict["word"]])
        parts += [line.append(". ").append(typographic(verdict["sentence"]), style="not bold default"), Text()]
    parts += [_losses(result), _below(result)]
    parts += [Text(f"note: {warning}", style="yellow") for warning in result["warnings"]]
    return Group(*parts)


def _losses(result: Mapping[str, Any]) -> Table:
    paired = result["against"] is not None
    level = f"{result['interval']['level']:.0%} interval"
    # With these columns the table fits 80 characters.
    heads = ["loss", "base", "perplexity", "change", level] if paired else ["predictions", "loss", level, "perplexity"]
    table = Table(title=Text("Loss by position"), title_justify="left", box=None, pad_edge=False, header_style="dim")
    for head in ["tokens seen", *heads]:
        table.add_column(head, justify="right", no_wrap=True)
    if paired:
        table.add_column("", no_wrap=True)
    for bucket in [*result["buckets"], result["overall"]]:
        last = bucket is result["overall"]
        cells = [Text("all" if last else span(bucket["first"], bucket["last"]))]
        if paired:
            values = [number(bucket["loss"]["value"]), number(bucket["base_loss"]["value"])]
            values += [perplexity(bucket["perplexity"]), signed(bucket["difference"]["value"])]
            cells += [Text(value) for value in (*values, interval(bucket["difference"]))]
            cells.append(Text(bucket["verdict"], style=_STYLES[bucket["verdict"]]))
        else:
            bounds = f"{number(bucket['loss']['low'])} to {number(bucket['loss']['high'])}"
            values = [count(bucket["tokens"]), number(bucket["loss"]["value"]), bounds]
            cells += [Text(value) for value in (*values, perplexity(bucket["perplexity"]))]
        table.add_row(*cells, style="bold" if last else "")
    return table


def _below(result: Mapping[str, Any]) -> Text:
    text = Text()
    data = result["data"]
    text.append(
        f"\n{counted(data['predictions'], 'prediction')} in {counted(data['sequences'], 'sequence')} of up to "
        f"{count(data['longest'])} tokens; {counted(data['left_out'], 'token')} left out.\n",
        style="dim",
    )
    for use in (result["model"], result["against"]):
        if use is not None:
            text.append(f"{clipped(use['name'])}: {count(use['tokens_per_second'])} tokens/s\n", style="dim")
        for learned in use["learned"] if use is not None else ():
            text.append(
                f"{learned['name']} {learned['form']}: {len(learned['layers'])} layers {TIMES} "
                f"{len(learned['heads'])} heads, moved by {number(learned['moved_mean'])} on average, "
                f"{number(learned['moved_most'])} at most"
            )
            negative = len(learned["negative_heads"])
            text.append(f"; {counted(negative, 'head')} with a negative multiplier somewhere\n" if negative else "\n")
    text.rstrip()
    return text
