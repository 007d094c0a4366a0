"""The texts of a trial: some to calibrate on, others that no calibration sees, to measure on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.checkpoint import replace_file
from surgery.data import Document
from surgery.evaluation.held_out_passages import short_names
from surgery.words import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of one trial; further texts are left out.
MOST_TEXTS = 96
# Of a text, in characters for each token of the longest haystack; the rest is left out.
MOST_CHARACTERS = 64
# With as many texts, whole texts are measured; with fewer, the last third of each.
WHOLE = 16
MEASURED = 24
# Passages of a quarter of the length that a calibration holds out, before those of the whole length.
_SHORT_PASSAGES = 8
# A calibration holds out a third of its texts. A part of a text has about its share of the tokens, not exactly.
_THIRDS, _MARGIN = 3, 1.05


@dataclass(frozen=True)
class TrialText:
    """A text, and its number of tokens."""

    name: str
    text: str
    tokens: int


@dataclass(frozen=True)
class TextDivision:
    """Texts to calibrate on and texts to measure on.

    Attributes:
        calibrate, measure: they share no character.
        whole: whether whole texts are measured, and not the last third of each.
    """

    calibrate: tuple[TrialText, ...]
    measure: tuple[TrialText, ...]
    whole: bool

    @property
    def in_words(self) -> str:
        """What is measured on."""
        kind = "whole texts" if self.whole else "texts, the last third of each,"
        return f"{len(self.measure)} {kind} that no calibration saw"


def count_tokens(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, longest: int
) -> tuple[list[TrialText], list[str]]:
    """The texts with their numbers of tokens, and sentences on what is left out.

    Args:
        documents: the texts.
        tokenizer: of the model.
        longest: tokens of the longest haystack that may be tried.
    """
    # By content, so that the texts of one folder are not left out together.
    ordered = sorted(short_names(documents), key=lambda one: hashlib.sha256(one.text.encode()).digest())
    left_out = []
    if len(ordered) > MOST_TEXTS:
        left_out.append(f"{len(ordered) - MOST_TEXTS} of {len(ordered)} texts: {MOST_TEXTS} are enough")
    most = MOST_CHARACTERS * longest
    cut = [one for one in ordered[:MOST_TEXTS] if len(one.text) > most]
    if cut:
        left_out.append(f"the text of {counted(len(cut), 'long file')} after the first {most:,} characters")
    found = []
    for document in ordered[:MOST_TEXTS]:
        text = document.text[:most]
        tokens = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        found.append(TrialText(document.name, text, tokens))
    return found, left_out


def divide_texts(texts: Sequence[TrialText], length: int) -> TextDivision:
    """Every second of the texts that are long enough is measured, or the last third of each.

    Args:
        texts: in an order that depends on their content alone.
        length: tokens of the longest haystack and passage.
    """
    long = [text for text in texts if text.tokens >= length * _MARGIN]
    if len(long) >= WHOLE:
        measured = long[::2][:MEASURED]
        names = {id(text) for text in measured}
        return TextDivision(tuple(text for text in texts if id(text) not in names), tuple(measured), True)
    parts = [_cut(text) for text in texts]
    measured = [part for _, part in parts if part.tokens >= length * _MARGIN]
    return TextDivision(tuple(part for part, _ in parts), tuple(measured), False)


def missing_text(texts: Sequence[TrialText], length: int) -> str | None:
    """What the texts are too short for, in words; None if a trial at this length can run."""
    division = divide_texts(texts, length)
    if not division.measure:
        longest = max(text.tokens for text in texts)
        given = counted(len(texts), "text")
        return f"the longest of {given} has {longest:,} tokens, and none leaves {length:,} to measure on"
    needed = _needed(division.calibrate, length)
    longest = max(text.tokens for text in division.calibrate)
    if longest < needed:
        return f"the longest text to calibrate on has {longest:,} tokens; a trial at {length:,} needs {needed:,}"
    return None


def write_texts(division: TextDivision, folder: Path) -> tuple[Path, Path]:
    """The two folders of texts, for calibrations and for measuring."""
    folders = folder / "calibrate", folder / "measure"
    for place, texts in zip(folders, (division.calibrate, division.measure), strict=True):
        place.mkdir(parents=True, exist_ok=True)
        for number, text in enumerate(texts):
            name = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(text.name).stem)[:80]
            replace_file(place / f"{number:02}-{name}.txt", text.text.encode())
    return folders


def _needed(texts: Sequence[TrialText], length: int) -> int:
    """Tokens of a text whose held-out third has a passage of this length, after its share of the shorter ones."""
    holders = sum(1 for text in texts if text.tokens >= _THIRDS * length / 4) or 1
    return math.ceil(_THIRDS * length * (1 + math.ceil(_SHORT_PASSAGES / holders) / 4) * _MARGIN)


def _cut(text: TrialText) -> tuple[TrialText, TrialText]:
    """The first two thirds and the last third, cut at the end of a line."""
    wanted = round(len(text.text) * 2 / 3)
    border = text.text.rfind("\n", 0, wanted) + 1 or wanted
    tokens = round(text.tokens * border / len(text.text))
    return (
        replace(text, text=text.text[:border], tokens=tokens),
        replace(text, text=text.text[border:], tokens=text.tokens - tokens),
    )
