"""Probes of a given length in tokens, with as many lines or sentences as fit."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from surgery.errors import UsageError
from surgery.evaluation.passages import special_prefix
from surgery.evaluation.retrieval.probes.abcdigits import FEWEST_LINES, abcdigits
from surgery.evaluation.retrieval.probes.hidden_facts import most_needles, needle, passkey
from surgery.evaluation.retrieval.probes.induction import induction
from surgery.evaluation.retrieval.probes.probe import Probe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# (number of lines or sentences, depth, random source) -> prompt and answer.
Builder = Callable[[int, float, random.Random], tuple[str, str]]

DEFAULT_NEEDLES = 3


def make_probe(
    task: str,
    length: int,
    depth: float,
    *,
    seed: str,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
    needles: int | None = None,
) -> Probe:
    """The probe of a task at a length and depth; the same seed gives the same probe.

    Raises:
        UsageError: the length is too short for the task.
    """
    prefix = special_prefix(tokenizer)
    if task == "induction":
        try:
            return induction(length, depth, _ordinary(tokenizer, vocabulary), prefix, random.Random(seed))
        except ValueError as error:
            raise UsageError(f"task induction: {error}", hint="Set greater lengths in the suite.") from error
    if task == "needle":
        count = needles or DEFAULT_NEEDLES
        if count > most_needles():
            raise UsageError(f"needles: {count} is more than the limit of {most_needles()}")
        return _fitted(_with_needles(count), count, length, depth, seed, tokenizer, prefix, task)
    builder, fewest = {"abcdigits": (abcdigits, FEWEST_LINES), "passkey": (passkey, 1)}[task]
    return _fitted(builder, fewest, length, depth, seed, tokenizer, prefix, task)


def _with_needles(count: int) -> Builder:
    return lambda sentences, depth, draw: needle(sentences, depth, draw, count)


def _fitted(
    builder: Builder,
    fewest: int,
    length: int,
    depth: float,
    seed: str,
    tokenizer: PreTrainedTokenizerBase,
    prefix: Sequence[int],
    task: str,
) -> Probe:
    """The longest probe that fits, by bisection: more lines have more tokens, almost always."""

    def build(count: int) -> Probe:
        prompt, answer = builder(count, depth, random.Random(seed))
        return _encoded(tokenizer, prefix, prompt, answer)

    def size(probe: Probe) -> int:
        return len(probe.prompt) + len(probe.answer)

    best = build(fewest)
    if size(best) > length:
        raise UsageError(
            f"task {task} needs at least {size(best)} tokens with this tokenizer; {length} are too few",
            hint="Set greater lengths in the suite.",
        )
    low, high = fewest, fewest + length  # a line has at least one token
    while high - low > 1:
        middle = (low + high) // 2
        probe = build(middle)
        if size(probe) <= length:
            low, best = middle, probe
        else:
            high = middle
    return best


def _encoded(tokenizer: PreTrainedTokenizerBase, prefix: Sequence[int], prompt: str, answer: str) -> Probe:
    """The tokens of the answer are those after the prompt when both are tokenized as one text."""
    before = list(tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])
    whole = list(tokenizer(prompt + answer, add_special_tokens=False, verbose=False)["input_ids"])
    if whole[: len(before)] == before and len(whole) > len(before):
        after = whole[len(before) :]
    else:  # the tokenizer joins the end of the prompt and the answer; a model would not continue so
        after = list(tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"])
    return Probe((*prefix, *before), tuple(after), answer)


def _ordinary(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[int]:
    special = set(tokenizer.all_special_ids)
    return [token for token in range(min(vocabulary, len(tokenizer))) if token not in special]
