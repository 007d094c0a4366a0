"""Every colour of reports, figures and the terminal.

Blue and orange after Okabe and Ito. The pairs are told apart with any colour vision, and by line, marker or label too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# Text on a coloured cell.
LIGHT_TEXT = "#ffffff"
DARK_TEXT = "#10141a"


@dataclass(frozen=True)
class Palette:
    """The colours of one colour scheme.

    Attributes:
        page, ink, quiet, rule, soft: background, text, secondary text, lines, background of a box.
        model, base, series: lines and bars of a figure.
        worse, better, plain: bars of a difference.
        low, middle, high, full: ends and middle of a colour scale.
        kept, lost, gained, undecided, mixed: verdicts.
    """

    name: str
    page: str
    ink: str
    quiet: str
    rule: str
    soft: str
    model: str
    base: str
    worse: str
    better: str
    plain: str
    low: str
    middle: str
    high: str
    full: str
    series: tuple[str, ...]
    kept: str
    lost: str
    gained: str
    undecided: str
    mixed: str

    @property
    def css(self) -> str:
        """Custom properties for a page's ``:root``."""
        names = ("page", "ink", "quiet", "rule", "soft", "kept", "lost", "gained", "undecided", "mixed")
        return " ".join(f"--{name}: {getattr(self, name)};" for name in names)


LIGHT = Palette(
    name="light",
    page="#ffffff",
    ink="#1f2328",
    quiet="#59626c",
    rule="#d6dade",
    soft="#f5f6f7",
    model="#0072b2",
    base="#c25a00",
    worse="#c25a00",
    better="#0072b2",
    plain="#9aa3ac",
    low="#05508c",
    middle="#f4f4f2",
    high="#b34700",
    full="#003a5c",
    series=("#0072b2", "#00785a", "#a0447c", "#4d4d4d"),
    kept="#4a5560",
    lost="#a84a00",
    gained="#00609a",
    undecided="#6b5b00",
    mixed="#7a3060",
)
DARK = Palette(
    name="dark",
    page="#15181c",
    ink="#e6e9ec",
    quiet="#a2abb5",
    rule="#363c44",
    soft="#1d2126",
    model="#5cb8f0",
    base="#f0a04b",
    worse="#f0a04b",
    better="#5cb8f0",
    plain="#717b86",
    low="#6cc4ff",
    middle="#22272d",
    high="#ffa64d",
    full="#bfe3fb",
    series=("#5cb8f0", "#3fcf9f", "#e39ac6", "#c8c8c8"),
    kept="#b4bdc6",
    lost="#f0a04b",
    gained="#5cb8f0",
    undecided="#d9c25a",
    mixed="#e39ac6",
)

# Styles of the terminal, as rich writes them.
NOTE = "yellow"
ERROR = "bold red"
LABEL = "dim"
VERDICTS: Mapping[str, str] = MappingProxyType(
    {
        "kept": "green",
        "gained": "bold blue",
        "lost": "bold red",
        "mixed": "bold magenta",
        "no difference": "green",
        "undecided": "yellow",
    }
)
STATES: Mapping[str, str] = MappingProxyType(
    {
        "passed": "green",
        "skipped": "yellow",
        "done": "green",
        "failed": "red",
        "refused": "red",
        "ready": "",
        "running": "blue",
        "changed": "yellow",
    }
)
