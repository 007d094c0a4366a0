"""The terminal table fits a terminal and prints names as they are."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from surgery.reporting import terminal_summary
from surgery.reporting.formats import negative_heads, number, perplexity, signed, span, typographic
from tests.reporting.data import result


def _print(data: dict[str, Any], width: int = 80) -> str:
    buffer = StringIO()
    Console(file=buffer, width=width).print(terminal_summary(data))
    return buffer.getvalue()


def test_it_fits_eighty_columns() -> None:
    printed = _print(result())
    said = " ".join(printed.split())
    assert said.startswith("Lost Keep it? Not as it is: it lost in Loss by position and gained nothing that was")
    assert "\n  lost  Loss by position. The loss changed by +0.0200.\n" in printed
    rows = [line for line in printed.splitlines() if line.strip().startswith(("1–64", "all  2.52"))]  # noqa: RUF001
    assert len(rows) == 2 and all("+0.0190 to +0.0210  lost" in row for row in rows)
    assert (
        "…" not in printed
        and max(map(len, printed.splitlines())) <= 80
        and "1 head with a negative multiplier" in printed
    )


def test_every_section_has_its_table() -> None:
    printed = _print(result(everything=True))
    for words in (
        "ABCDigits",
        "Attention weights by n",
        "arc_easy: acc,none",
        "lm-eval run",
        "prefill 1024",
        "512 tokens",
    ):
        assert words in printed
    lines = [line for line in printed.splitlines() if "lm-eval run" not in line]  # commands are for copying
    assert "…" not in printed and max(map(len, lines)) <= 80
    assert "base" not in _print(result(base=None, everything=True))


def test_what_a_model_writes_is_text() -> None:
    """No escape reaches the terminal, no markup is read, and equal continuations are one line."""
    printed = _print(result(everything=True))
    assert "[bold]x[/bold]" in printed and "\\x1b[31m" in printed and "\\u202e" in printed
    assert not {"\x1b", "\u202e"} & set(printed)
    lines = printed.splitlines()
    assert "texts/two.txt: all add the same 5 tokens" in lines
    place = lines.index("texts/<i>one</i>.txt")
    assert lines[place + 1].split() == ["small", "the", "river"], "the base comes first"
    alone = _print(result(base=None, everything=True))
    assert "all add" not in alone and alone.count("and so on.") == 1


def test_without_a_base() -> None:
    printed = _print(result(base=None))
    assert "change" not in printed and "2.4200 to 2.6200" in printed
    data = result(base=None)
    data["sections"][0]["results"][0]["overall"]["loss"] |= {"low": None, "high": None}
    assert "\u2013 to \u2013" not in _print(data)


def test_markup_in_names_is_text() -> None:
    data = result(name="[red]x[/]")
    data["warnings"] = ["[bold]odd[/bold] [/]"]
    printed = _print(data)
    assert "[red]x[/]: ssmax" in printed and "[bold]odd[/bold] [/]" in printed


def test_numbers() -> None:
    assert (number(None), number(2.70611), number(-0.5, 2)) == ("\u2013", "2.7061", "\u22120.50")
    assert (signed(0.0), signed(0.00312), signed(-1.0, 1), signed(None)) == ("0", "+0.0031", "\u22121.0", "\u2013")
    assert [perplexity(value) for value in (14.9707, 17.5, 49152.3, 1e30)] == ["14.97", "17.50", "49,152", "1e+30"]
    assert (span(1, 1), span(1025, 2048)) == ("1", "1,025\u20132,048")
    assert typographic("by -0.0102 (-0.0145 to -0.0060), model-2 x-3") == (
        "by \u22120.0102 (\u22120.0145 to \u22120.0060), model-2 x-3"
    )


@pytest.mark.parametrize("most", [1, 3])
def test_negative_heads_widest_first(most: int) -> None:
    heads = [{"layer": layer, "head": 0, "first": 1, "last": 10 * layer} for layer in (1, 3, 2)]
    named = negative_heads(heads, most)
    assert named[0] == "layer 3, head 0 (n from 1 to 30)" and len(named) == min(3, most + 1)


def test_what_rounds_to_zero_has_no_sign() -> None:
    assert [signed(value) for value in (0.0, -0.00001, 0.00001, -0.0001)] == ["0", "0.0000", "0.0000", "\u22120.0001"]
