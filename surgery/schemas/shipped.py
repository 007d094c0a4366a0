"""The recipes and suites that ship with surgery: in a wheel inside the package, in a clone at its root."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from surgery.errors import UsageError
from surgery.words import nearest

_SUFFIX = ".yaml"


@dataclass(frozen=True)
class Shipped:
    """A file that ships with surgery.

    Attributes:
        name: file name without its ending.
        summary: first sentence of its comment.
        text: the whole file.
    """

    name: str
    summary: str
    text: str


def shipped_files(kind: str) -> list[Shipped]:
    """All files of a kind (``recipes`` or ``suites``), sorted by name."""
    folder = resources.files("surgery") / kind
    if not folder.is_dir():  # an editable install: only a wheel copies the folder into the package
        folder = Path(__file__).parents[2] / kind
    found = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name) if folder.is_dir() else []:
        if entry.name.endswith(_SUFFIX):
            text = entry.read_text(encoding="utf-8")
            found.append(Shipped(entry.name.removesuffix(_SUFFIX), _summary(text), text))
    return found


def shipped_file(kind: str, name: str) -> Shipped:
    """The file of a kind with this name.

    Raises:
        UsageError: there is no such file; the message has the nearest name.
    """
    known = {file.name: file for file in shipped_files(kind)}
    file = known.get(name.removesuffix(_SUFFIX))
    if file is None:
        close = nearest(name, known)
        raise UsageError(
            f"no {kind.removesuffix('s')} {name!r} ships with surgery"
            + (f"; did you mean {close!r}?" if close else ""),
            hint=f"These {kind} ship: {', '.join(known)}.",
        )
    return file


def _summary(text: str) -> str:
    """The comment at the top, up to its first full stop."""
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        header.append(line.lstrip("# ").strip())
    sentence, stop, _ = " ".join(header).partition(". ")
    return sentence + stop.strip()
