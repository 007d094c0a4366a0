"""What a next command is made of: the source, texts, and a measurement that needs none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# Stands for texts that only the user knows; `console.next_step` then asks for them.
TEXTS = "TEXTS"
_FOLDERS = ("texts", "text")
_ENDINGS = (".txt", ".md")


def texts_here() -> str:
    """A folder of texts in the working folder, by its usual name; else the word that asks for texts."""
    for name in _FOLDERS:
        if any(path.suffix in _ENDINGS for path in Path(name).rglob("*")):
            return name
    return TEXTS


def comparison(models: Sequence[Path | str], source: str | None, texts: list[str] | None = None) -> list[str]:
    """The command that compares checkpoints with their source, on texts or, without any, on facts in made-up text."""
    against = [] if source is None else ["--against", source]
    named = [word for text in texts or () for word in ("--text", text)]
    return ["surgery", "evaluate", *map(str, models), *against, *(named or ["--suite", "recall"])]
