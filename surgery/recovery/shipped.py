"""The recipes that ship: in the wheel beside the code, in a clone at its root."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from rapidfuzz import process

from surgery.errors import UsageError

_SUFFIX = ".yaml"


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe's name, the first sentence of its header, and its text."""

    name: str
    summary: str
    text: str


def shipped_recipes() -> list[ShippedRecipe]:
    """All of them, by name."""
    folder = resources.files("surgery") / "recipes"
    if not folder.is_dir():  # an editable install: the wheel puts the clone's folder there
        folder = Path(__file__).parents[2] / "recipes"
    found = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name) if folder.is_dir() else []:
        if entry.name.endswith(_SUFFIX):
            text = entry.read_text(encoding="utf-8")
            found.append(ShippedRecipe(entry.name.removesuffix(_SUFFIX), _summary(text), text))
    return found


def shipped_recipe(name: str) -> ShippedRecipe:
    """One of them.

    Raises:
        UsageError: there is none of that name; the nearest is given.
    """
    known = {recipe.name: recipe for recipe in shipped_recipes()}
    recipe = known.get(name.removesuffix(_SUFFIX))
    if recipe is None:
        close = process.extractOne(name, list(known), score_cutoff=50)
        raise UsageError(
            f"No recipe {name!r} ships with surgery" + (f"; did you mean {close[0]!r}?" if close else "."),
            hint=f"There are {', '.join(known)}.",
        )
    return recipe


def _summary(text: str) -> str:
    """The comment at the top up to its first full stop."""
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        header.append(line.lstrip("# ").strip())
    sentence, stop, _ = " ".join(header).partition(". ")
    return sentence + stop.strip()
