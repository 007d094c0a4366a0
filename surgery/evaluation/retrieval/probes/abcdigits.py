"""ABCDigits, the retrieval task of "Screening Is Enough" (arXiv 2604.01178).

Lines like ``A=967892``: 26 letters, each with its own number of six digits. The target's line appears once, at a given
depth, and again at the end without its digits, which the model completes. The other lines are drawn with weights 2^0
to 2^24, shuffled over the other 25 letters, each at least once.
"""

from __future__ import annotations

import random
import string

LETTERS = string.ascii_uppercase
DIGITS = 6
FEWEST_LINES = len(LETTERS)


def abcdigits_lines(lines: int, depth: float, draw: random.Random) -> tuple[list[str], str, str]:
    """The lines before the question, the target's letter and its digits.

    Args:
        lines: number of lines with the target's line; at least 26.
        depth: position of the target's line: 0 is first, 1 is last.
        draw: the random source.

    Raises:
        ValueError: fewer than 26 lines; every letter needs one.
    """
    if lines < FEWEST_LINES:
        raise ValueError(f"ABCDigits needs at least {FEWEST_LINES} lines, not {lines}")
    numbers = draw.sample(range(10 ** (DIGITS - 1), 10**DIGITS), len(LETTERS))
    digits = dict(zip(LETTERS, map(str, numbers), strict=True))
    target = draw.choice(LETTERS)
    others = [letter for letter in LETTERS if letter != target]
    weights = [2.0**power for power in range(len(others))]
    draw.shuffle(weights)
    drawn = others + draw.choices(others, weights, k=lines - FEWEST_LINES)
    draw.shuffle(drawn)
    drawn.insert(round(depth * len(drawn)), target)
    return [f"{letter}={digits[letter]}" for letter in drawn], target, digits[target]


def abcdigits(lines: int, depth: float, draw: random.Random) -> tuple[str, str]:
    """Prompt and answer."""
    found, target, digits = abcdigits_lines(lines, depth, draw)
    return "\n".join([*found, f"{target}="]), digits
