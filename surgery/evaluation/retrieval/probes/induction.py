"""Copying (induction): random tokens, and at the end the start of an earlier stretch. Small models can do it."""

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
        depth: position of the first copy of the stretch: 0 is the start, 1 is right before the second copy.
        tokens: the tokens to draw from.
        prefix: special tokens that the tokenizer puts first.
        draw: the random source.

    Raises:
        ValueError: the length is too short.
    """
    room = length - len(prefix) - CUE - ANSWER
    if room < CUE + ANSWER:
        raise ValueError(f"copying needs at least {len(prefix) + 2 * (CUE + ANSWER)} tokens, not {length}")
    body = draw.choices(tokens, k=room)
    start = round(depth * (room - CUE - ANSWER))
    stretch = body[start : start + CUE + ANSWER]
    return Probe((*prefix, *body, *stretch[:CUE]), tuple(stretch[CUE:]), None)
