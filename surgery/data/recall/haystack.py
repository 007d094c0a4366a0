"""Haystacks: a part of a text with facts between its paragraphs, then the questions with their answers."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from surgery.data.offsets import Offsets
from surgery.data.recall.templates import Fact, FactFamily, draw_facts
from surgery.errors import UsageError

# A fact with its question takes about 40 tokens; no more than half of a haystack is facts and questions.
TOKENS_PER_FACT = 80
# Of one haystack. With one family, only the names tell the facts apart.
MOST_FAMILIES = 2
_PARAGRAPHS = re.compile(r"\n[ \t]*\n+")
_LINES = re.compile(r"\n+")


@dataclass(frozen=True)
class Haystack:
    """A text, what is hidden in it, and where.

    Attributes:
        text: the haystack's text is a part of it.
        start: where the part begins, if the text is long enough: 0 is its first paragraph, 1 its last.
        length: most tokens of text, facts, questions and answers.
        facts: in any order.
        depths: for each fact, the depth of each of its lines: 0 is the start of the text, 1 its end.
        order: of the questions, by number of the fact.
    """

    text: str
    start: float
    length: int
    facts: tuple[Fact, ...]
    depths: tuple[tuple[float, ...], ...]
    order: tuple[int, ...]


def draw_haystack(
    text: str, families: Mapping[str, FactFamily], lengths: Sequence[int], facts: Sequence[int], draw: random.Random
) -> Haystack:
    """A haystack of random length, facts, depths and order of questions.

    Args:
        text: to hide facts in.
        families: of the facts.
        lengths: the least and the greatest length in tokens; its logarithm is drawn evenly.
        facts: the least and the greatest number of facts; a short haystack has no more than fit.
        draw: the random source.
    """
    low, high = lengths
    length = round(math.exp(draw.uniform(math.log(low), math.log(high))))
    count = max(1, min(draw.randint(*facts), length // TOKENS_PER_FACT))
    chosen = draw.sample(sorted(families), min(len(families), draw.randint(1, MOST_FAMILIES)))
    found = draw_facts({name: families[name] for name in chosen}, count, draw)
    order = list(range(count))
    draw.shuffle(order)
    depths = tuple(tuple(draw.random() for _ in fact.lines) for fact in found)
    return Haystack(text, draw.random(), length, found, depths, tuple(order))


def encode_haystack(haystack: Haystack, offsets: Offsets) -> tuple[list[int], list[bool]]:
    """Token ids of a haystack with its questions, and for each whether it belongs to an answer.

    The text is cut between lines, so that everything has at most ``haystack.length`` tokens; a short text gives a
    short haystack.

    Facts that do not fit even without a text are left out.

    Raises:
        UsageError: not even one fact with its question fits.
    """
    questions, spans = _questions(haystack)
    fixed = sum(len(offsets(line)[0]) + 2 for fact in haystack.facts for line in fact.lines)
    room = haystack.length - fixed - len(offsets(questions)[0])
    part = cut_text(haystack.text, haystack.start, max(1, room), offsets)
    while True:
        placed, _ = place_facts(part, [*zip(haystack.facts, haystack.depths, strict=True)])
        body = placed + "\n\n"
        ids, places = offsets(body + questions)
        if len(ids) <= haystack.length:
            break
        if not part:
            return encode_haystack(_with_fewer_facts(haystack, len(ids)), offsets)
        part = _shorter(part, len(ids) - haystack.length, offsets)
    return ids, tokens_in(places, [(len(body) + first, len(body) + last) for first, last in spans])


def tokens_in(places: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """For each token whether it has a character of a span.

    Args:
        places: of each token the first character and the one after its last.
        spans: the same of each span.
    """
    return [end > start and any(start < last and end > first for first, last in spans) for start, end in places]


def _with_fewer_facts(haystack: Haystack, tokens: int) -> Haystack:
    """The haystack without its last fact."""
    last = len(haystack.facts) - 1
    if last == 0:
        raise UsageError(
            f"kind: recall: a fact and its question take {tokens} tokens, and the haystack may have {haystack.length}",
            hint="Set greater lengths in the source.",
        )
    order = tuple(number for number in haystack.order if number != last)
    return replace(haystack, facts=haystack.facts[:last], depths=haystack.depths[:last], order=order)


def place_facts(text: str, facts: Sequence[tuple[Fact, Sequence[float]]]) -> tuple[str, list[tuple[int, int]]]:
    """The text with the lines of each fact between its paragraphs, at the given depths; the text stays as it is.

    Returns:
        The text, and for each line its first character and the one after its last, in the order of the text.
    """
    lines = [(depth, line) for fact, depths in facts for depth, line in zip(depths, fact.lines, strict=True)]
    breaks, end = _breaks(text, fewest=len(lines))
    placed: list[list[str]] = [[] for _ in breaks]
    for depth, line in sorted(lines):
        placed[round(depth * (len(breaks) - 1))].append(line)
    whole, spans = "", []
    for place, following, own in zip(breaks, [*breaks[1:], len(text)], placed, strict=True):
        for line in own:
            whole += "" if not whole or whole.endswith(end) else end
            spans.append((len(whole), len(whole) + len(line)))
            whole += f"{line}{end}"
        whole += text[place:following]
    return whole.rstrip("\n"), spans


def cut_text(text: str, start: float, tokens: int, offsets: Offsets) -> str:
    """A part of a text of at most ``tokens`` tokens, from the start of a line to the end of a line."""
    lines = text.splitlines(keepends=True)
    sizes = [len(line) for line in lines]
    # A token has rarely more than eight characters; a shorter text is cheaper to tokenize.
    first = _first_line(sizes, start, 8 * tokens)
    part = "".join(lines[first:])[: 8 * tokens]
    _, places = offsets(part)
    if len(places) > tokens:
        part = part[: places[tokens][0]]
    return _whole_lines(part) if len(part) < sum(sizes[first:]) else part.strip("\n")


def _first_line(sizes: Sequence[int], start: float, wanted: int) -> int:
    """The line at which a part of ``wanted`` characters begins; the first one if the text is shorter."""
    spare = sum(sizes) - wanted
    if spare <= 0:
        return 0
    seen = 0
    for number, size in enumerate(sizes):
        seen += size
        if seen > start * spare:
            return number
    return 0


def _whole_lines(part: str) -> str:
    """Without the last line, which may be cut; a single line is cut after a word."""
    kept = part.rpartition("\n")[0] or part.rpartition(" ")[0]
    return kept.strip("\n")


def _shorter(part: str, tokens: int, offsets: Offsets) -> str:
    """The part without its last ``tokens`` tokens, and without the rest of that line."""
    _, places = offsets(part)
    if len(places) <= tokens + 1:
        return ""
    return _whole_lines(part[: places[-tokens - 1][0]])


def _breaks(text: str, fewest: int) -> tuple[list[int], str]:
    """Where paragraphs begin, the end of the text, and what ends a paragraph; lines if there are few paragraphs."""
    found = _starts(_PARAGRAPHS, text)
    return (found, "\n\n") if len(found) > fewest else (_starts(_LINES, text), "\n")


def _starts(pattern: re.Pattern[str], text: str) -> list[int]:
    """The start, where a match ends, and the end of the text."""
    return [0, *(match.end() for match in pattern.finditer(text)), len(text)]


def _questions(haystack: Haystack) -> tuple[str, list[tuple[int, int]]]:
    """The questions with their answers, and the characters of each answer."""
    text, spans = "", []
    for number in haystack.order:
        fact = haystack.facts[number]
        text += f"{fact.question}{fact.space}"
        spans.append((len(text), len(text) + len(fact.answer)))
        text += f"{fact.answer}\n"
    return text, spans
