"""Samples of generation."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from surgery.evaluation.estimates import ResultRow


@dataclass(frozen=True)
class GenerationPrompt:
    """The beginning of a text: its name, its number of tokens, and the end of what the models continue."""

    document: str
    tokens: int
    ending: str


@dataclass(frozen=True)
class Continuation:
    """What a model adds to a prompt.

    Attributes:
        text: the tokens as text, which may end within a character.
        tokens: their number.
        shared: how many of them, from the first, the base adds too; None without a base.
        shared_text: these as text.
        same: whether the base adds the very same tokens; None without a base.
    """

    text: str
    tokens: int
    shared: int | None
    shared_text: str
    same: bool | None


@dataclass(frozen=True)
class GenerationResult:
    """The continuations of one model, one for each prompt."""

    model: int
    continuations: tuple[Continuation, ...]


@dataclass(frozen=True)
class GenerationSection:
    """How each model, and the base as one more, continues the same prompts; not part of the verdict."""

    kind: Literal["generation"]
    title: str
    options: dict[str, Any]
    prompts: tuple[GenerationPrompt, ...]
    results: tuple[GenerationResult, ...]

    def rows(self) -> list[ResultRow]:
        """For each model that has a base, the mean number of tokens before the first one that differs."""
        return [
            ResultRow("generated tokens before the first that differs, mean", own.model, fmean(shared))
            for own in self.results
            if (shared := [one.shared for one in own.continuations if one.shared is not None])
        ]
