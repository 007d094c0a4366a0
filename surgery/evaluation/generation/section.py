"""Samples of generation, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from surgery.evaluation.generation.result import Continuation, GenerationPrompt, GenerationResult, GenerationSection
from surgery.evaluation.measure import Measurement

# Characters of a prompt's end that a reader sees.
SHOWN = 240


def generation_section(
    measurements: Sequence[tuple[int, Measurement]], base: Measurement | None, models: int
) -> GenerationSection | None:
    """The continuations of every model, the base as one more model; None where only the base was measured."""
    if not measurements:
        return None
    first = measurements[0][1]
    units = base["units"] if base is not None else None
    results = [_result(number, own["units"], units) for number, own in measurements]
    if units is not None:
        results.append(_result(models, units, None))
    return GenerationSection(
        kind="generation",
        title="Samples of generation",
        options=dict(first["part"]),
        prompts=tuple(
            GenerationPrompt(unit["document"], unit["prompt_tokens"], unit["prompt"][-SHOWN:])
            for unit in first["units"]
        ),
        results=tuple(results),
    )


def _result(
    number: int, units: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]] | None
) -> GenerationResult:
    others = base if base is not None else [None] * len(units)
    return GenerationResult(number, tuple(_continuation(own, other) for own, other in zip(units, others, strict=True)))


def _continuation(own: Mapping[str, Any], base: Mapping[str, Any] | None) -> Continuation:
    if base is None:
        return Continuation(own["text"], len(own["tokens"]), None, "", None)
    return Continuation(
        text=own["text"],
        tokens=len(own["tokens"]),
        shared=_shared(own["tokens"], base["tokens"]),
        shared_text=own["text"][: _shared(own["text"], base["text"])],
        same=own["tokens"] == base["tokens"],
    )


def _shared(own: Sequence[Any], base: Sequence[Any]) -> int:
    """The number of first elements that are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own, base, strict=False)))
