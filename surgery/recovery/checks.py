"""Does a stage of a recipe fit the model: its objective, and the sections that belong to operations."""

from __future__ import annotations

from surgery.errors import PlanRefusedError
from surgery.operations import OPERATIONS
from surgery.recovery.layout import Layout
from surgery.recovery.operation_sections import given_sections
from surgery.recovery.recipe import Recipe


def check_objective(stage: Recipe, layout: Layout) -> None:
    """Refuse to learn from the original where it cannot teach.

    Raises:
        PlanRefusedError: positions were changed, and layers are matched or texts are longer than the original knows.
    """
    if not stage.objective.needs_teacher:
        return
    for options in layout.operations:
        operation = OPERATIONS[str(options["name"])]
        known = operation.known_positions(options)
        if known is None:
            continue
        if stage.objective.calls_modules:
            raise PlanRefusedError(
                f"objective: {stage.objective.name} gives each layer its input in the original, rotary positions "
                f"included; positions were changed ({operation.name}), so every layer would be matched on the wrong "
                "positions",
                hint="Set objective.name to distill or next_token.",
            )
        if stage.data.sequence_length > known:
            raise PlanRefusedError(
                f"the original knows {known} positions; on sequences of {stage.data.sequence_length} tokens it would "
                "teach errors",
                hint=f"Distill on sequences up to {known}, in a stage of its own, and set objective.name to next_token "
                "for longer ones.",
            )


def check_sections(stage: Recipe, layout: Layout) -> None:
    """Refuse a section of an operation where no trained layer can follow it.

    Raises:
        PlanRefusedError: the model does not have the operation, or not on a trained layer; or as the operation says.
    """
    for operation in OPERATIONS.values():
        sections = given_sections(stage, operation.name)
        if not sections:
            continue
        key = next(iter(sections))
        own = [options for options in layout.operations if options["name"] == operation.name]
        layers = {layer for options in own for layer in options["layers"]}
        if not layers:
            raise PlanRefusedError(
                f"{key} is about {operation.learns}; the model has {layout.done()}",
                hint=f"Leave {key} out, or convert with --to {operation.name}.",
            )
        if not layers & set(layout.chosen(stage)):
            raise PlanRefusedError(
                f"{key} is about {operation.learns}; none of train.layers {stage.train.layers!r} has any",
                hint=f"Leave {key} out, or train layers that {operation.name} is on.",
            )
        operation.check_sections(sections, own[0])
