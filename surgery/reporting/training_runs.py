"""How the training runs of a model are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from surgery.reporting.drawing import Drawing, FigureRenderer
from surgery.reporting.figures import has_training_losses, training_curves
from surgery.reporting.formats import number
from surgery.words import counted

Plain = Mapping[str, Any]


def drawing_of(renderer: FigureRenderer, run: Plain) -> Drawing | None:
    """The curves of a run; None where it logged no loss."""
    if not has_training_losses(run["rows"]):
        return None
    steps = sum("loss" in row for row in run["rows"])
    return renderer(
        "training",
        f"{run.get('label', 'training')}: {counted(steps, 'logged step')}.",
        _describe_training(run["rows"]),
        partial(training_curves, run["rows"]),
    )


def _describe_training(rows: Sequence[Plain]) -> str:
    """First and last logged loss."""
    logged = [row for row in rows if isinstance(row.get("loss"), int | float) and row["loss"] == row["loss"]]
    first, last = logged[0], logged[-1]
    return (
        f"Line chart of the training loss: {number(first['loss'])} at step {first.get('step')}, "
        f"{number(last['loss'])} at step {last.get('step')}; the learning rate below."
    )
