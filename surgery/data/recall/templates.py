"""Families of facts: how a fact is written, how it is asked for, and the names and values that it can have.

A family is a row of data. To add one for training, add it to `TRAINING`; one for measuring, to `MEASURING`. A test
compares the two: no template, name or word may be in both.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Values = Literal["digits", "words"]
TrainingFamily = Literal[
    "sentence", "question", "key_value", "constant", "variable", "json", "table", "letters", "words", "two_steps"
]
# Of a value in digits; each length is as likely.
FEWEST_DIGITS, MOST_DIGITS = 4, 7
_TRIES = 1000


@dataclass(frozen=True)
class FactFamily:
    """How the facts of one kind look.

    Attributes:
        lines: what stands in the text, each at a place of its own; with ``{name}``, ``{other}`` and ``{value}``.
        question: what asks for the value, with ``{name}``; the answer follows it.
        parts: a name is one word of each of these, joined by ``joiner``.
        joiner: between the words of a name.
        space: what stands between question and answer.
        values: kind of the answer.
        words: of an answer in words, two are drawn.
    """

    lines: tuple[str, ...]
    question: str
    parts: tuple[tuple[str, ...], ...]
    joiner: str = " "
    space: str = " "
    values: Values = "digits"
    words: tuple[str, ...] = ()

    @property
    def names(self) -> int:
        """Number of different names."""
        count = 1
        for part in self.parts:
            count *= len(part)
        return count


@dataclass(frozen=True)
class Fact:
    """One fact: its lines in the text, the question up to its answer, what stands between them, and the answer."""

    family: str
    lines: tuple[str, ...]
    question: str
    space: str
    answer: str


_KINDS = (
    "amber",
    "quiet",
    "hollow",
    "crooked",
    "northern",
    "painted",
    "narrow",
    "woven",
    "distant",
    "frosted",
    "mossy",
)
_OBJECTS = ("barn", "kettle", "ferry", "lantern", "loom", "orchard", "anvil", "pulley", "saddle", "wagon", "chimney")
_SUBSYSTEMS = ("queue", "timer", "buffer", "parser", "socket", "driver", "journal", "mixer", "router", "cursor")
_QUANTITIES = ("limit", "offset", "stride", "budget", "version", "serial", "window", "seed", "quota", "mask")
_CAPITALS = tuple(word.upper() for word in _SUBSYSTEMS)
_CAPITAL_QUANTITIES = tuple(word.upper() for word in _QUANTITIES)
_PEOPLE = ("Tomas", "Ingrid", "Olena", "Piet", "Marta", "Yusuf", "Agnes", "Rashid", "Clara", "Bruno", "Hanne", "Milos")
_SURNAMES = ("Barlow", "Fenwick", "Okafor", "Lindqvist", "Marsh", "Petrov", "Quayle", "Sato", "Tanner", "Ueda")
_CONSONANTS = tuple("bcdfghjklmnpqrstvwxz")
_WORDS = ("maple", "canvas", "rocket", "pepper", "velvet", "island", "copper", "thunder", "basket", "window", "dragon")

TRAINING: Mapping[TrainingFamily, FactFamily] = MappingProxyType(
    {
        "sentence": FactFamily(
            ("The registration number of the {name} is {value}.",),
            "The registration number of the {name} is",
            (_KINDS, _OBJECTS),
        ),
        "question": FactFamily(
            ("Please note that the {name} was sold as lot {value}.",),
            "Question: as which lot was the {name} sold?\nAnswer: lot",
            (_KINDS, _OBJECTS),
        ),
        "key_value": FactFamily(("{name}: {value}",), "{name}:", (_SUBSYSTEMS, _QUANTITIES), joiner="_"),
        "constant": FactFamily(
            ("#define {name} {value}",), "#define {name}", (_CAPITALS, _CAPITAL_QUANTITIES), joiner="_"
        ),
        "variable": FactFamily(("let {name} = {value};",), "let {name} =", (_SUBSYSTEMS, _QUANTITIES), joiner=""),
        "json": FactFamily(
            ('{{"item": "{name}", "number": {value}}}',), '{{"item": "{name}", "number":', (_KINDS, _OBJECTS)
        ),
        "table": FactFamily(("| {name} | {value} |",), "| {name} |", (_PEOPLE, _SURNAMES)),
        "letters": FactFamily(("{name} > {value}",), "{name} >", (_CONSONANTS, _CONSONANTS, _CONSONANTS), joiner=""),
        "words": FactFamily(
            ("The watchword of {name} is {value}.",),
            "The watchword of {name} is",
            (_PEOPLE, _SURNAMES),
            values="words",
            words=_WORDS,
        ),
        "two_steps": FactFamily(
            ("{name} shares the desk of {other}.", "The desk of {other} has the telephone {value}."),
            "{name} is reached at the telephone",
            (_PEOPLE, _SURNAMES),
        ),
    }
)

_CITIES = ("Lisbon", "Nairobi", "Quito", "Hanoi", "Oslo", "Dakar", "Lima", "Riga", "Cairo", "Perth", "Turin", "Kyoto")
_BUILDINGS = ("museum", "harbour", "embassy", "theatre", "brewery", "stadium", "airport", "library")
_ANIMALS = ("otter", "falcon", "badger", "lizard", "heron", "walrus", "gecko", "panther", "sparrow", "donkey")
_SHADES = ("scarlet", "indigo", "ivory", "turquoise", "crimson", "olive", "azure", "maroon")
_DISHES = ("lentils", "noodles", "oysters", "pancakes", "dumplings", "radishes", "chestnuts", "apricots", "walnuts")

MEASURING: Mapping[str, FactFamily] = MappingProxyType(
    {
        "vault": FactFamily(
            ("The vault below the {name} opens with {value}.",),
            "The vault below the {name} opens with",
            (_CITIES, _BUILDINGS),
        ),
        "setting": FactFamily(("set {name} to {value}",), "set {name} to", (_SHADES, _ANIMALS), joiner="-"),
        "ticket": FactFamily(
            ("[{name}] ticket={value}",), "[{name}] ticket=", (_ANIMALS, _CITIES), joiner=".", space=""
        ),
        "menu": FactFamily(
            ("Today the {name} serves {value}.",),
            "Today the {name} serves",
            (_CITIES, _BUILDINGS),
            values="words",
            words=_DISHES,
        ),
    }
)


def draw_facts(families: Mapping[str, FactFamily], count: int, draw: random.Random) -> tuple[Fact, ...]:
    """Facts of the families in turn; no name and no value is drawn twice.

    With few families, facts look alike, so that only the name tells them apart.

    Args:
        families: by name.
        count: number of facts.
        draw: the random source.

    Raises:
        ValueError: a family has too few names.
    """
    names = list(families)
    used: set[str] = set()
    return tuple(_fact(names[n % len(names)], families[names[n % len(names)]], draw, used) for n in range(count))


def most_facts(families: Mapping[str, FactFamily]) -> int:
    """How many facts can be drawn of any one of the families: half its names."""
    return min(family.names // (2 * len(family.lines)) for family in families.values())


def _fact(kind: str, family: FactFamily, draw: random.Random, used: set[str]) -> Fact:
    words = {
        "name": _unused(lambda: family.joiner.join(draw.choice(part) for part in family.parts), used),
        "value": _unused(lambda: _value(family, draw), used),
    }
    if len(family.lines) > 1:
        words["other"] = _unused(lambda: family.joiner.join(draw.choice(part) for part in family.parts), used)
    lines = tuple(line.format(**words) for line in family.lines)
    return Fact(kind, lines, family.question.format(**words), family.space, words["value"])


def _value(family: FactFamily, draw: random.Random) -> str:
    if family.values == "words":
        return " ".join(draw.sample(family.words, 2))
    digits = draw.randint(FEWEST_DIGITS, MOST_DIGITS)
    return str(draw.randrange(10 ** (digits - 1), 10**digits))


def _unused(make: Callable[[], str], used: set[str]) -> str:
    for _ in range(_TRIES):
        found = make()
        if found not in used:
            used.add(found)
            return found
    raise ValueError("a family of facts has too few names or values")
