"""Numbers and words in the form in which pages, pictures and tables show them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MINUS, DASH, TIMES = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"

HEADLINES = {
    "kept": "Kept",
    "lost": "Lost",
    "gained": "Gained",
    "mixed": "Lost and gained",
    "no difference": "No difference",
    "undecided": "Undecided",
}


def typographic(text: str) -> str:
    """A hyphen before a digit becomes a minus sign."""
    return re.sub(r"(?<![\w-])-(?=\d)", MINUS, text)


def number(value: float | None, digits: int = 4) -> str:
    """``2.7061``; a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 4) -> str:
    """``+0.0031``; ``0.0000`` for a value that rounds to zero, ``0`` for exactly zero."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    text = f"{value:+.{digits}f}"
    return (text if float(text) else text[1:]).replace("-", MINUS)  # a value that rounds to zero has no sign


def percent(value: float | None, digits: int = 1) -> str:
    """``62.5%``; a dash for None."""
    return DASH if value is None else f"{value:.{digits}%}"


def size(value: int | None) -> str:
    """``538 MB``; a dash for None."""
    return DASH if value is None else f"{value / 1e6:,.0f} MB"


def perplexity(value: float | None) -> str:
    """Four significant figures for small values, separated thousands for large values."""
    if value is None:
        return DASH
    if value < 1000:
        return f"{value:#.4g}"
    return f"{value:,.0f}" if value < 1e9 else f"{value:.3g}"


def count(value: float) -> str:
    """``12,288``."""
    return f"{value:,.0f}"


def span(first: int, last: int) -> str:
    """``65–128``, or ``1`` where both ends are the same."""
    return count(first) if first == last else f"{count(first)}{DASH}{count(last)}"


def interval(estimate: Mapping[str, Any] | None, digits: int = 4) -> str:
    """``+0.0012 to +0.0040``; a dash where there is none."""
    if estimate is None or estimate["low"] is None:
        return DASH
    return f"{signed(estimate['low'], digits)} to {signed(estimate['high'], digits)}"


def bounds(estimate: Mapping[str, Any], digits: int = 4) -> str:
    """``2.4200 to 2.6200``, without signs; a dash where there is no interval."""
    if estimate["low"] is None:
        return DASH
    return f"{number(estimate['low'], digits)} to {number(estimate['high'], digits)}"


def negative_heads(heads: list[Mapping[str, Any]], most: int = 12) -> list[str]:
    """``layer 3, head 4 (n from 1 to 12)``, widest range first, and the number of further heads."""
    widest = sorted(heads, key=lambda head: (head["first"] - head["last"], head["layer"], head["head"]))
    named = [
        f"layer {head['layer']}, head {head['head']} (n from {count(head['first'])} to {count(head['last'])})"
        for head in widest[:most]
    ]
    return [*named, f"{len(widest) - most} more"] if len(widest) > most else named


def visible(text: str) -> str:
    """A text of a model or a file whose lines stay lines; what cannot be printed is spelled, as ``\\x1b``."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def one_line(text: str, most: int = 1000) -> str:
    """The same on one line, at most ``most`` letters: blanks and line ends are one blank."""
    line = " ".join(visible(text).split())
    return line if len(line) <= most else line[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def clipped(name: str, most: int = 40) -> str:
    """A name for a legend: one printable line, at most ``most`` letters."""
    line = "".join(letter if letter.isprintable() else "?" for letter in name)
    return line if len(line) <= most else line[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
