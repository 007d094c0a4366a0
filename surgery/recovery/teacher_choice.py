"""Which model teaches in a run: the same weights or a second copy, and the operations that it keeps."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.errors import PlanRefusedError
from surgery.operations import OPERATIONS
from surgery.recovery.layout import Layout
from surgery.recovery.recipe import Recipe


def needs_second_copy(stages: Sequence[Recipe]) -> bool:
    """Whether the source model must be loaded as a second copy: it teaches while the weights are trained."""
    changes = any(stage.train.changes_weights for stage in stages)
    return changes and any(stage.objective.needs_teacher for stage in stages)


def kept_operations(stages: Sequence[Recipe], layout: Layout) -> tuple[str, ...]:
    """Names of the operations that the teacher has too: the changes of positions, where the objective keeps them.

    Raises:
        PlanRefusedError: one stage needs the teacher with the model's positions, and another with the source's.
    """
    changed = [
        str(options["name"])
        for options in layout.operations
        if OPERATIONS[str(options["name"])].known_positions(options) is not None
    ]
    taught = [stage.objective for stage in stages if stage.objective.needs_teacher]
    if not changed or not any(objective.keeps_positions for objective in taught):
        return ()
    others = [objective.name for objective in taught if not objective.keeps_positions]
    if others:
        keeping = next(objective.name for objective in taught if objective.keeps_positions)
        raise PlanRefusedError(
            f"objective: {keeping} needs a teacher with the model's positions, {others[0]} one with the source's",
            hint="Train them in two runs.",
        )
    return tuple(changed)


def teacher_in_words(stages: Sequence[Recipe], layout: Layout) -> str | None:
    """Who teaches; None if nobody does."""
    if not any(stage.objective.needs_teacher for stage in stages):
        return None
    who = "a second copy of the model" if needs_second_copy(stages) else "the same weights, operation and adapter off"
    kept = kept_operations(stages, layout)
    return f"{who}; {', '.join(kept)} stays on" if kept else who
