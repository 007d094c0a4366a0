"""What every measure consists of: its options, how it is measured, and the section that it makes of a result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.data import Document
from surgery.errors import SurgeryError
from surgery.evaluation.part import PartOptions
from surgery.loading import RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnTokens = Callable[[int], None]
# A finished part, as the results folder holds it.
Measurement = Mapping[str, Any]
# (number and measurement of each model, measurement of the base, number of models) -> a section, or None.
MakeSection = Callable[[Sequence[tuple[int, Measurement]], Measurement | None, int], Any]


class NotMeasurableError(SurgeryError):
    """A measure does not apply to the class of a model; the session goes on with the other parts."""


@dataclass(frozen=True)
class Unit:
    """The smallest piece that is measured and stored: a sequence, or a prompt.

    Attributes:
        key: its name within the part.
        tokens: number of tokens that go through the model; progress counts them.
        group: units with equal groups may share a batch.
        payload: what the measure needs.
    """

    key: str
    tokens: int
    group: Any
    payload: Any


@dataclass(frozen=True)
class PartPlan:
    """The units of a part for one tokenizer, and ``data``: plain values that describe the measured tokens."""

    units: tuple[Unit, ...]
    data: dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A loaded model with its name, tokenizer, folder and run options."""

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    folder: Path = Path()
    run: RunOptions = field(default_factory=RunOptions)


class Measure(ABC):
    """A measure of one model alone, for one part; ``version`` rises when its numbers change their meaning.

    ``cost`` is the time of a token over that of a plain forward pass, for estimates.
    """

    version = 1
    cost = 1.0

    @abstractmethod
    def plan(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, documents: Sequence[Document]) -> PartPlan:
        """The units, the same for every model with this tokenizer; no model is needed.

        Args:
            tokenizer: of the model.
            vocabulary: size of the model's vocabulary.
            documents: the texts.
        """

    @abstractmethod
    def run(self, subject: Subject, units: Sequence[Unit], on_tokens: OnTokens) -> list[dict[str, Any]]:
        """Plain values of each unit; all ``units`` have the same group. ``on_tokens`` gets each count of new tokens."""


class PairedMeasure(ABC):
    """A measure of a model and its base in the same turns, both in memory."""

    version = 1

    @abstractmethod
    def run(self, model: Any, base: Any | None, on_case: Callable[[str], None]) -> list[dict[str, Any]]:
        """Plain values, one row for each case. ``on_case`` gets the name of each case as it begins."""

    @abstractmethod
    def passes(self) -> list[tuple[int, int]]:
        """The forward passes of each model, for estimates: tokens of a pass, and how many there are of it."""


def no_warnings(section: Any) -> list[str]:
    """The warnings of a measure that has none of its own."""
    return []


@dataclass(frozen=True)
class MeasureKind:
    """One row of the registry of measures.

    Attributes:
        name: ``kind`` in suites, stored parts and results.
        options: what a suite can set.
        measure: makes it from the options; it may import torch then, and not before.
        result: the value that the section is.
        section: makes the section from the finished parts of all models; None where it has nothing to show.
        warnings: what a reader of the section must know, one sentence each.
    """

    name: str
    options: type[PartOptions]
    measure: Callable[[Any], Measure | PairedMeasure]
    result: type[Any]
    section: MakeSection
    warnings: Callable[[Any], list[str]] = no_warnings
