"""A case: a prompt whose cache is made small, and continuations that are scored on what is left of it.

Used by both sides, so it imports torch alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Continuation:
    """Tokens after the prompt; the last ``scored`` of them are scored."""

    tokens: list[int]
    scored: int


@dataclass(frozen=True)
class Case:
    """A prompt with its continuations, each of which follows the prompt directly.

    Attributes:
        name: also the name of the file with its results.
        task: loss, passkey or recall.
        prompt: tokens.
        continuations: a text's next tokens, or questions with their answers.
    """

    name: str
    task: str
    prompt: list[int]
    continuations: list[Continuation]


def write_cases(cases: list[Case], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(case) for case in cases]) + "\n", encoding="utf-8")


def read_cases(path: Path) -> list[Case]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return [Case(**{**one, "continuations": [Continuation(**each) for each in one["continuations"]]}) for one in found]


def unfinished(cases: list[Case], work: Path, side: str) -> Iterator[tuple[Case, Path]]:
    """Cases without a result of this side, each with the file for it."""
    for case in cases:
        place = work / side / f"{case.name}.json"
        if not place.is_file():
            yield case, place


def write_result(place: Path, rows: list[dict[str, Any]]) -> None:
    """Whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(".partial")
    partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    partial.rename(place)
    print(place, flush=True)


def scores(case: Case, logits_of: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """Loss of the scored tokens, and whether each has the greatest logit, by continuation.

    Args:
        case: with its continuations.
        logits_of: logits ``(tokens, vocabulary)`` for ``(1, tokens)`` after the prompt; must leave the cache as it was.
    """
    losses, exact = [], []
    for one in case.continuations:
        tokens = torch.tensor([one.tokens])
        logits = logits_of(tokens[:, :-1])[-one.scored :].float()
        answer = tokens[0, -one.scored :]
        losses.append(float(torch.nn.functional.cross_entropy(logits, answer)))
        exact.append(bool((logits.argmax(-1) == answer).all()))
    return {"loss": losses, "exact": exact}
