"""Files that ship, recipes and suites: in the wheel beside the code, in a clone at its root."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from rapidfuzz import fuzz, process

from surgery.errors import UsageError

_SUFFIX = ".yaml"


@dataclass(frozen=True)
class Shipped:
    """A file's name without its ending, the first sentence of its header, and its text."""

    name: str
    summary: str
    text: str


def shipped_files(kind: str) -> list[Shipped]:
    """All files of a kind (``recipes``, ``suites``), by name."""
    folder = resources.files("surgery") / kind
    if not folder.is_dir():  # an editable install: the wheel puts the clone's folder there
        folder = Path(__file__).parents[2] / kind
    found = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name) if folder.is_dir() else []:
        if entry.name.endswith(_SUFFIX):
            text = entry.read_text(encoding="utf-8")
            found.append(Shipped(entry.name.removesuffix(_SUFFIX), _summary(text), text))
    return found


def shipped_file(kind: str, name: str) -> Shipped:
    """One of them.

    Raises:
        UsageError: there is none of that name; the nearest is given.
    """
    known = {file.name: file for file in shipped_files(kind)}
    file = known.get(name.removesuffix(_SUFFIX))
    if file is None:
        close = process.extractOne(name, list(known), scorer=fuzz.ratio, score_cutoff=50)
        raise UsageError(
            f"No {kind.removesuffix('s')} {name!r} ships with surgery"
            + (f"; did you mean {close[0]!r}?" if close else "."),
            hint=f"There are {', '.join(known)}.",
        )
    return file


def _summary(text: str) -> str:
    """The comment at the top up to its first full stop."""
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        header.append(line.lstrip("# ").strip())
    sentence, stop, _ = " ".join(header).partition(". ")
    return sentence + stop.strip()
