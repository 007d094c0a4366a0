"""What all measurements have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.data import Document
from surgery.loading import RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnTokens = Callable[[int], None]


@dataclass(frozen=True)
class Unit:
    """The smallest piece that is measured and kept: a sequence, a prompt.

    Attributes:
        key: names it within its part.
        tokens: how many go through the model; what progress counts.
        group: units with equal groups may share a batch.
        payload: what the measurement needs.
    """

    key: str
    tokens: int
    group: Any
    payload: Any


@dataclass(frozen=True)
class Plan:
    """The units of a part for one tokenizer, and ``data``: plain values that say what was taken of what."""

    units: tuple[Unit, ...]
    data: dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A loaded model under its name, where it lies, and how it was asked to run."""

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    folder: Path = Path()
    run: RunOptions = field(default_factory=RunOptions)


class Measure(ABC):
    """A kind of measurement for one part of a suite. ``version`` rises when its numbers change their meaning."""

    version = 1

    @abstractmethod
    def plan(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, documents: Sequence[Document]) -> Plan:
        """The units, the same for every model with this tokenizer; no model is needed.

        Args:
            tokenizer: of the model.
            vocabulary: tokens that the model knows.
            documents: the texts.
        """

    @abstractmethod
    def run(self, subject: Subject, units: Sequence[Unit], on_tokens: OnTokens) -> list[dict[str, Any]]:
        """Plain values of each unit; ``units`` have one group. ``on_tokens`` is told of tokens as they are done."""
