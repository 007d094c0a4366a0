"""Facts hidden in plain sentences: a passkey among repeated sentences, needles among varied sentences."""

from __future__ import annotations

import random

_REPEATED = (
    "The river runs slowly past the mill.",
    "Clouds drift over the hills and are gone.",
    "Bread cools on the sill by the window.",
    "Someone walks home along the wall.",
)
_WHO = ("The gardener", "A neighbour", "The old clerk", "Her cousin", "The baker", "A traveller", "The teacher")
_DID = ("repaired", "painted", "carried", "sold", "admired", "borrowed", "measured", "forgot")
_WHAT = ("a wooden chair", "the blue cart", "a heavy basket", "the tall ladder", "a copper kettle", "the low fence")
_WHEN = ("before the rain came", "on the way to town", "while the bells rang", "late in the autumn", "after supper")
_COLOURS = ("red", "green", "silver", "yellow", "purple", "white", "brown", "golden")
_THINGS = ("cabinet", "gate", "drawer", "locker", "chest", "safe", "cellar", "box")
_CODE_DIGITS = 5


def passkey(sentences: int, depth: float, draw: random.Random) -> tuple[str, str]:
    """Prompt and answer: one key of five digits among ``sentences`` repeated sentences."""
    key = _code(draw)
    body = [_REPEATED[place % len(_REPEATED)] for place in range(sentences)]
    body.insert(round(depth * sentences), f"The pass key is {key}. Remember that {key} is the pass key.")
    start = "Somewhere in this text there is a pass key. Find it and remember it."
    return f"{start} {' '.join(body)} What is the pass key? The pass key is", f" {key}"


def needle(sentences: int, depth: float, draw: random.Random, needles: int = 3) -> tuple[str, str]:
    """Prompt and answer: codes of several things among ``sentences`` varied sentences; the prompt asks for one.

    Args:
        sentences: number of sentences of the haystack.
        depth: position of the needle that the prompt asks for; the others are at random positions.
        draw: the random source.
        needles: number of needles.
    """
    places = draw.sample([f"{colour} {thing}" for colour in _COLOURS for thing in _THINGS], needles)
    codes: list[str] = []
    while len(codes) < needles:
        code = _code(draw)
        if code not in codes:
            codes.append(code)
    body = [sentence(draw) for _ in range(sentences)]
    # From the back, so that an inserted sentence does not move the positions before it.
    where = [(round(depth * sentences), 0), *((draw.randint(0, sentences), other) for other in range(1, needles))]
    for at, which in sorted(where, reverse=True):
        body.insert(at, f"The code of the {places[which]} is {codes[which]}.")
    question = f"What is the code of the {places[0]}? The code of the {places[0]} is"
    return f"Remember the codes in this text. {' '.join(body)} {question}", f" {codes[0]}"


def sentence(draw: random.Random) -> str:
    """A made-up sentence."""
    return f"{draw.choice(_WHO)} {draw.choice(_DID)} {draw.choice(_WHAT)} {draw.choice(_WHEN)}."


def most_needles() -> int:
    """The largest number of needles: one for each thing."""
    return len(_COLOURS) * len(_THINGS)


def _code(draw: random.Random) -> str:
    return str(draw.randrange(10 ** (_CODE_DIGITS - 1), 10**_CODE_DIGITS))
