"""Recall: many facts in one text, each with its own question."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from surgery.data import Document
from surgery.data.offsets import offsets_of
from surgery.data.recall import MEASURING, Fact, FactFamily, cut_text, draw_facts, most_facts, place_facts, tokens_in
from surgery.errors import UsageError
from surgery.evaluation.passages import special_prefix
from surgery.evaluation.retrieval.probes.hidden_facts import sentence
from surgery.evaluation.retrieval.probes.probe import Probe, ProbeSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HaystackMaker:
    """Makes haystacks from texts, or from made-up sentences.

    Args:
        tokenizer: of the model.
        documents: the texts. The long enough texts are used in turn. Without texts, sentences are made up.
        facts: number of facts in a haystack.
        depths: of the facts, in turn.
        families: of the facts, in turn; by default those that no training uses.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        documents: Sequence[Document],
        facts: int,
        depths: Sequence[float],
        families: Mapping[str, FactFamily] = MEASURING,
    ) -> None:
        if facts > most_facts(families):
            raise UsageError(f"needles: {facts} is more than the limit of {most_facts(families)}")
        self._families = families
        self._tokenizer, self._documents, self._facts, self._depths = tokenizer, documents, facts, depths
        self._prefix = special_prefix(tokenizer)
        self._by_length: dict[int, list[str]] = {}

    def make(self, length: int, sample: int, seed: str) -> ProbeSet:
        """A haystack in which no prompt with its answer has more than ``length`` tokens.

        Args:
            length: most tokens.
            sample: its number; texts and families of facts are used in turn.
            seed: of the facts.

        Raises:
            UsageError: the length is too short for the facts, or the texts are too short for the length.
        """
        draw = random.Random(seed)
        # One family in a haystack, so that only the name tells the facts apart.
        family = list(self._families)[sample % len(self._families)]
        facts = draw_facts({family: self._families[family]}, self._facts, draw)
        draw.shuffle(order := [self._depths[number % len(self._depths)] for number in range(len(facts))])
        text = self._text(length, sample, draw)
        fixed = len(self._prefix) + sum(len(self._ids(line)) + 2 for fact in facts for line in fact.lines)
        fixed += max(len(self._ids(fact.question + fact.space + fact.answer)) for fact in facts)
        room = length - fixed
        while True:
            if room < 1:
                raise UsageError(
                    f"task recall needs more than {length} tokens for {len(facts)} facts with this tokenizer",
                    hint="Take a greater length (--length), or fewer needles in a suite of your own.",
                )
            part = cut_text(text, 0.0, room, offsets_of(self._tokenizer))
            lines = [(fact, (depth,) * len(fact.lines)) for fact, depth in zip(facts, order, strict=True)]
            placed, spans = place_facts(part, lines)
            body = placed + "\n\n"
            probes = [
                self._probe(body + fact.question + fact.space.rstrip(), fact.space, fact.answer) for fact in facts
            ]
            over = max(len(probe.prompt) + len(probe.answer) for probe in probes) - length
            if over <= 0:
                # Every prompt keeps a token of its own, whose logits give the answer's first token.
                shared = _common([probe.prompt[:-1] for probe in probes])
                return ProbeSet(shared, tuple(probes), tuple(order), self._text_among(shared, body, facts[0], spans))
            room -= over

    def _text(self, length: int, sample: int, draw: random.Random) -> str:
        if not self._documents:
            return " ".join(sentence(draw) for _ in range(length // 4))
        texts = self._long_enough(length)
        if not texts:
            raise UsageError(
                f"no text has {length} tokens for task recall", hint="Pass longer texts, or set smaller lengths."
            )
        return texts[sample % len(texts)]

    def _long_enough(self, length: int) -> list[str]:
        """The texts of at least ``length`` tokens."""
        if length not in self._by_length:  # a token rarely has more than eight characters
            parts = [(document.text, document.text[: 8 * length]) for document in self._documents]
            found = [text for text, part in parts if len(self._ids(part)) >= length]
            self._by_length[length] = found
        return self._by_length[length]

    def _text_among(self, shared: int, body: str, fact: Fact, spans: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """The positions of the shared tokens that are text alone: no fact, no question, no prefix."""
        _, places = offsets_of(self._tokenizer)(body + fact.question)
        other = tokens_in(places, [*spans, (len(body), len(body) + len(fact.question))])
        first = len(self._prefix)
        return tuple(first + place for place, is_other in enumerate(other[: shared - first]) if not is_other)

    def _probe(self, prompt: str, space: str, answer: str) -> Probe:
        """The answer begins at the first token that it changes: a tokenizer may join it with the space before it."""
        before, whole = self._ids(prompt), self._ids(prompt + space + answer)
        same = _common([tuple(before), tuple(whole)])
        return Probe((*self._prefix, *whole[:same]), tuple(whole[same:]), space + answer)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """The number of first tokens that all sequences share."""
    same = (len(set(tokens)) == 1 for tokens in zip(*sequences, strict=False))
    return sum(takewhile(bool, same))
