"""What an evaluation would measure, and its time: known once the texts are tokens, before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, overload

from surgery.anatomy.anatomy import family_of
from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.source import Source
from surgery.data import Document
from surgery.errors import CheckpointError, PlanRefusedError, UsageError
from surgery.evaluation.measure import PairedMeasure, Unit
from surgery.evaluation.part import PartOptions
from surgery.evaluation.suite import Suite
from surgery.loading import RunOptions
from surgery.loading.pace import ModelSize, duration, measure_pace, model_size
from surgery.result_table import ResultTable, ShownAsTable


@dataclass(frozen=True)
class PartWork:
    """One part of a suite on one model, or on a model and its base.

    Attributes:
        kind: of the part.
        model: its name.
        units: sequences or prompts that are left to measure.
        tokens: of these.
        seconds: an estimate for the processor of this machine; None where the number of tokens is not known.
    """

    kind: str
    model: str
    units: int
    tokens: int
    seconds: float | None


@dataclass(frozen=True)
class EvaluationPlan(ShownAsTable):
    """What ``evaluate`` would measure; finished parts are left out.

    Attributes:
        suite: its name.
        models: that are measured.
        against: the base.
        parts: each part on each model.
        notes: what a user should know before it runs, one sentence each.
    """

    suite: str
    models: tuple[str, ...]
    against: str | None
    parts: tuple[PartWork, ...]
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of the parts whose time is known."""
        return sum(part.seconds or 0.0 for part in self.parts)

    @property
    def estimate(self) -> str:
        """The time in words."""
        unknown = list(dict.fromkeys(part.kind for part in self.parts if part.seconds is None))
        return duration(self.seconds) + (f" and the time of {' and '.join(unknown)}" if unknown else "")

    def to_table(self) -> ResultTable:
        """One row for each part on each model."""
        rows = tuple((part.kind, part.model, part.units, part.tokens, part.seconds) for part in self.parts)
        columns = ("part", "model", "units", "tokens", "seconds")
        return ResultTable(f"left to measure of the suite {self.suite}", columns, rows, (self.estimate, *self.notes))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "seconds": self.seconds, "estimate": self.estimate}


def size_of(source: Source, run: RunOptions) -> ModelSize:
    """The size of a model as it is run, from its headers."""
    return model_size(open_checkpoint(source), run)


def part_work(part: PartOptions, name: str, size: ModelSize, units: Sequence[Unit], cost: float) -> PartWork:
    """The work of the units of a part.

    Args:
        part: its options.
        name: of the model.
        size: of the model.
        units: that are left.
        cost: time of a token over that of a plain forward pass.
    """
    tokens = sum(unit.tokens for unit in units)
    seconds = sum(size.seconds(measure_pace(), unit.tokens, unit.tokens) for unit in units) * cost
    return PartWork(part.kind, name, len(units), tokens, seconds if tokens or not units else None)


def paired_work(part: PartOptions, name: str, measure: PairedMeasure, sizes: Sequence[ModelSize]) -> PartWork:
    """The work of a part that runs a model and its base in turn."""
    passes = measure.passes()
    seconds = sum(size.seconds(measure_pace(), tokens, tokens, count) for size in sizes for tokens, count in passes)
    tokens = len(sizes) * sum(tokens * count for tokens, count in passes)
    return PartWork(part.kind, name, len(passes), tokens, seconds)


def beyond_positions(source: Source, suite: Suite, work: Iterable[tuple[PartOptions, Sequence[Unit]]]) -> str | None:
    """A sentence where a sequence is longer than the positions of the model, with what to do.

    Args:
        source: the model.
        suite: of the parts.
        work: parts and their units. A haystack has several questions, so its tokens are more than those of a sequence.
    """
    positions = _positions(source)
    longest = max((min(part.longest, max(unit.tokens for unit in units)) for part, units in work if units), default=0)
    if positions is None or longest <= positions:
        return None
    return (
        f"sequences of {longest:,} tokens are longer than the {positions:,} positions of {source.name}; "
        f"{_way_within(suite, positions)}"
    )


def _positions(source: Source) -> int | None:
    config = open_checkpoint(source).config
    text = config.get("text_config")
    own = text if isinstance(text, dict) else config
    try:
        positions = family_of(config).value(own, "max_position_embeddings")
    except (PlanRefusedError, CheckpointError):  # a family that no operation knows is measured too
        positions = own.get("max_position_embeddings")
    return positions if isinstance(positions, int) else None


def _way_within(suite: Suite, positions: int) -> str:
    """How to measure within the positions of a model: by another length, or by a suite of the user's own."""
    with suppress(UsageError):
        if max(part.longest for part in suite.changed(length=positions).parts) <= positions:
            return f"a length of {positions} measures within them (--length {positions})"
    return "a suite of your own with smaller lengths measures within them"


class WatchedDocuments(Sequence[Document]):
    """Documents that report each one that is read from them, for the progress of tokenizing.

    Args:
        documents: the texts.
        on_document: called with the number of documents that were read, and of all.
    """

    def __init__(self, documents: Sequence[Document], on_document: Any) -> None:
        self._documents, self._on_document = documents, on_document

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, index: int) -> Document: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Document]: ...

    def __getitem__(self, index: int | slice) -> Document | Sequence[Document]:
        return self._documents[index]

    def __iter__(self) -> Iterator[Document]:
        for number, document in enumerate(self._documents, 1):
            self._on_document(number, len(self._documents))
            yield document
