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
    table = Table(title=Text("Loss by position"), title_justify="left", box=None, pad_edge=False, header_style="dim")
    table.add_column("tokens seen", justify="right")
    table.add_column("predictions", justify="right")
    table.add_column("loss", justify="right")
    if paired:
        table.add_column("base", justify="right")
    table.add_column("perplexity", justify="right")
    if paired:
        table.add_column("base", justify="right")
        table.add_column("difference", justify="right")
        table.add_column("interval", justify="right")
        table.add_column("")
    for bucket in [*result["buckets"], result["overall"]]:
        last = bucket is result["overall"]
        row = ["all" if last else span(bucket["first"], bucket["last"]), count(bucket["tokens"])]
        row.append(number(bucket["loss"]["value"]))
        if paired:
            row.append(number(bucket["base_loss"]["value"]))
        row.append(perplexity(bucket["perplexity"]))
        if paired:
            word = bucket["verdict"]
            row += [perplexity(bucket["base_perplexity"]), signed(bucket["difference"]["value"])]
            row += [interval(bucket["difference"])]
        cells = [Text(cell) for cell in row] + ([Text(word, style=_STYLES[word])] if paired else [])
        table.add_row(*cells, style="bold" if last else "", end_section=bucket is result["buckets"][-1])
    return table


def _below(result: Mapping[str, Any]) -> Text:
    text = Text()
    data = result["data"]
    text.append(
        f"\n{count(data['predictions'])} predictions in {count(data['sequences'])} sequences of up to "
        f"{count(data['longest'])} tokens; {count(data['left_out'])} tokens left out.\n",
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
            text.append(f"; {negative} heads with a negative multiplier somewhere\n" if negative else "\n")
    text.rstrip()
    return text
