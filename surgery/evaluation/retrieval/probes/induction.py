"""Copying: random tokens, of which a stretch begins again at the end. What small models can do, if anything."""

from __future__ import annotations

import random
from collections.abc import Sequence

from surgery.evaluation.retrieval.probes.probe import Probe

CUE = 4
ANSWER = 12


def induction(length: int, depth: float, tokens: Sequence[int], prefix: Sequence[int], draw: random.Random) -> Probe:
    """A probe of exactly ``length`` tokens, answer included.

    Args:
        length: prompt and answer.
        depth: where the stretch stands the first time: 0 is at the start, 1 right before it begins again.
        tokens: those to draw from.
        prefix: special tokens that the tokenizer puts first.
        draw: the source of chance.

    Raises:
        ValueError: the length leaves no room.
    """
    room = length - len(prefix) - CUE - ANSWER
    if room < CUE + ANSWER:
        raise ValueError(f"copying needs at least {len(prefix) + 2 * (CUE + ANSWER)} tokens, not {length}")
    body = draw.choices(tokens, k=room)
    start = round(depth * (room - CUE - ANSWER))
    stretch = body[start : start + CUE + ANSWER]
    return Probe((*prefix, *body, *stretch[:CUE]), tuple(stretch[CUE:]), None)
