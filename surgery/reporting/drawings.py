"""All pictures of a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery.reporting import learned_numbers, training_runs
from surgery.reporting.drawing import Drawing, FigureRenderer
from surgery.reporting.sections import view_of

Plain = Mapping[str, Any]


@dataclass(frozen=True)
class Drawings:
    """The pictures of a result, in the order of its data: of each section, operation and training of each model."""

    sections: tuple[tuple[Drawing, ...], ...]
    operations: tuple[tuple[tuple[Drawing, ...], ...], ...]
    trainings: tuple[tuple[Drawing | None, ...], ...]

    def __iter__(self) -> Iterator[Drawing]:
        for section in self.sections:
            yield from section
        for model in self.operations:
            for operation in model:
                yield from operation
        for trainings in self.trainings:
            yield from (drawing for drawing in trainings if drawing is not None)


def draw_all(result: Plain, histories: Sequence[Sequence[Plain]]) -> Drawings:
    """Draw everything that the data hold.

    Args:
        result: what ``EvaluationResult.to_dict()`` gives.
        histories: training runs of each model, each ``{"label": str, "rows": [dict, ...]}``.
    """
    renderer = FigureRenderer()
    return Drawings(
        tuple(tuple(view_of(section["kind"]).drawings(renderer, result, section)) for section in result["sections"]),
        tuple(
            tuple(tuple(learned_numbers.drawings(renderer, own)) for own in use["learned"]) for use in result["models"]
        ),
        tuple(tuple(training_runs.drawing_of(renderer, run) for run in runs) for runs in histories),
    )
