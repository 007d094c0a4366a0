"""The texts of a calibration: haystacks to learn from, and held-out passages and haystacks."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from surgery.data import Document
from surgery.data.recall import TRAINING, FactFamily, draw_facts, most_facts
from surgery.errors import UsageError
from surgery.evaluation.held_out_passages import cut_from_start
from surgery.evaluation.passages import Passage
from surgery.evaluation.retrieval.probes import HaystackMaker, ProbeSet
from surgery.operations.ssmax.calibration_settings import HELD_OUT_HAYSTACKS, SHORTEST, SSMaxCalibrationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Facts in a haystack: many, because each answer adds evidence at little cost. They are at most half of it.
FACTS = (8, 32)
# Of each text, the part that is held out, at its end.
HELD_OUT = 1 / 3
# A token rarely has more than eight characters, and rarely fewer than two.
_CHARACTERS = 8


@dataclass(frozen=True)
class CalibrationTexts:
    """Pieces of text to hide facts in, and what is held out.

    Attributes:
        pieces: of the observed parts, each long enough for the longest haystack where its text is.
        passages: held out, to measure the loss.
        haystacks: of held-out text, to measure the answers.
    """

    pieces: tuple[Document, ...]
    passages: tuple[Passage, ...]
    haystacks: tuple[ProbeSet, ...]


def divide_texts(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int],
    settings: SSMaxCalibrationSettings,
) -> CalibrationTexts:
    """The texts of a calibration: the last third of each is held out.

    Args:
        documents: the texts.
        tokenizer: of the model.
        lengths: tokens of the held-out passages; the greatest is that of the longest haystack.
        settings: of the calibration.

    Raises:
        UsageError: no text is long enough.
    """
    parts = [_cut(document) for document in documents]
    observed, held_out = [part for part, _ in parts], [part for _, part in parts]
    # The order depends on the seed and the number of texts alone: by name, a few passages could be of one kind.
    random.Random(settings.seed).shuffle(held_out)
    passages = [
        passage
        for length in sorted(set(lengths))
        for passage in cut_from_start(held_out, tokenizer, [length], settings.passages(length, lengths))
    ]
    longest = max(lengths)
    pieces = [piece for part in observed for piece in _pieces(part, _CHARACTERS * longest)]
    others = [piece for part in held_out for piece in _pieces(part, _CHARACTERS * longest)]
    haystacks = draw_haystacks(others, tokenizer, longest, HELD_OUT_HAYSTACKS, seed=f"{settings.seed}/held out")
    return CalibrationTexts(tuple(pieces), tuple(passages), haystacks)


def draw_haystacks(
    pieces: Sequence[Document], tokenizer: PreTrainedTokenizerBase, longest: int, count: int, *, seed: str
) -> tuple[ProbeSet, ...]:
    """Haystacks of random lengths, whose logarithm is drawn evenly, with facts of the families for training.

    Args:
        pieces: of text.
        tokenizer: of the model.
        longest: most tokens of a haystack.
        count: number of haystacks.
        seed: of all that is drawn.

    Raises:
        UsageError: a text is too short to hide a fact in.
    """
    draw = random.Random(seed)
    order = list(pieces)
    draw.shuffle(order)
    found = []
    for number in range(count):
        piece = order[number % len(order)]
        tokens = len(tokenizer(piece.text, add_special_tokens=False, verbose=False)["input_ids"])
        most = min(longest, tokens)
        length = round(math.exp(draw.uniform(math.log(min(SHORTEST, most)), math.log(most))))
        kind, chosen = draw.choice(sorted(TRAINING.items(), key=lambda item: item[0]))
        family: dict[str, FactFamily] = {kind: chosen}
        (example,) = draw_facts(family, 1, draw)
        size = len(tokenizer("\n\n".join(example.lines), add_special_tokens=False, verbose=False)["input_ids"])
        facts = min(draw.randint(*FACTS), length // (2 * size), most_facts(family))
        if facts < 1:
            raise _too_short(piece, tokens)
        depths = [draw.random() for _ in range(facts)]
        maker = HaystackMaker(tokenizer, [piece], facts, depths, family)
        haystack = maker.make(length, 0, seed=f"{seed}/{number}")
        if len(haystack.text) < 2:  # nothing precedes the first token
            raise _too_short(piece, tokens)
        found.append(haystack)
    return tuple(found)


def _too_short(piece: Document, tokens: int) -> UsageError:
    return UsageError(
        f"{piece.name} has a part of {tokens} tokens, too few to hide a fact in",
        hint="Give longer texts: each needs 1,000 tokens or more.",
    )


def _cut(document: Document) -> tuple[Document, Document]:
    """The observed and the held-out part of a text, cut at the end of a line that is near."""
    text = document.text
    wanted = round(len(text) * (1 - HELD_OUT))
    line = text.rfind("\n", 0, wanted) + 1
    border = line if line > wanted / 2 else wanted  # a text may be one long line
    return replace(document, text=text[:border]), replace(document, text=text[border:])


def _pieces(document: Document, characters: int) -> list[Document]:
    """Parts of a text of about as many characters; a short rest belongs to the part before it."""
    count = max(1, len(document.text) // characters)
    size = math.ceil(len(document.text) / count)
    return [replace(document, text=document.text[start : start + size]) for start in range(0, len(document.text), size)]
