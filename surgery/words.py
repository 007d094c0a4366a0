"""Words of messages: numbers with their nouns, and names that were meant."""

from __future__ import annotations

from collections.abc import Iterable

# Share of the letters that are right: 0.5 of `tyni` for `tiny`, 0.44 of `europeans` for `rope`.
ALIKE = 0.5


def counted(value: int, noun: str) -> str:
    """``1 head``, ``1,024 heads``."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def nearest(given: str, names: Iterable[str], *, least: float = ALIKE) -> str | None:
    """The name that is spelled most like a wrong one; None if none is like it.

    Args:
        given: the wrong name; case does not matter.
        names: the right ones. Of equally like names the first one is taken.
        least: the least likeness that counts, from 0 to 1. A letter that is wrong, missing or too many lowers it by its
            share of the longer name, as do two letters that changed places.
    """
    from rapidfuzz import process  # only errors need it
    from rapidfuzz.distance import OSA

    likeness = OSA.normalized_similarity
    found = process.extractOne(given, list(names), scorer=likeness, processor=str.lower, score_cutoff=least)
    return None if found is None else str(found[0])
