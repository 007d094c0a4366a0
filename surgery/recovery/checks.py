"""Checks of a stage against the model: its objective, and its sections of operations."""

from __future__ import annotations

from surgery.errors import PlanRefusedError
from surgery.operations import OPERATIONS
from surgery.recovery.layout import Layout
from surgery.recovery.operation_sections import given_sections
from surgery.recovery.recipe import Recipe
from surgery.recovery.train_choice import TrainLora


def check_objective(stage: Recipe, layout: Layout) -> None:
    """Refuse an objective with a teacher if the source model cannot teach.

    Raises:
        PlanRefusedError: positions were changed, and layers are matched or texts exceed the source's positions.
    """
    if not stage.objective.needs_teacher or stage.objective.keeps_positions:
        return
    for options in layout.operations:
        operation = OPERATIONS[str(options["name"])]
        known = operation.known_positions(options)
        if known is None:
            continue
        if stage.objective.calls_modules:
            raise PlanRefusedError(
                f"objective: {stage.objective.name} gives each layer its input in the source model, with its rotary "
                f"positions; {operation.name} changed the positions, so every layer would learn on wrong positions",
                hint="Set objective.name to distill or next_token.",
            )
        if stage.data.sequence_length > known:
            raise PlanRefusedError(
                f"the source model has {known} positions, so it cannot teach sequences of {stage.data.sequence_length} "
                "tokens",
                hint=f"Distill in a separate stage with sequences of up to {known} tokens, and set objective.name to "
                "next_token for longer sequences.",
            )


def check_sections(stage: Recipe, layout: Layout) -> None:
    """Refuse a section of an operation that has no effect on the trained layers.

    Raises:
        PlanRefusedError: no trained layer has the operation, an adapter alone is trained, or the operation refuses.
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
                f"{key} applies to {operation.learns}; the model has {layout.done()}",
                hint=f"Leave {key} out, or convert with --to {operation.name}.",
            )
        if not layers & set(layout.chosen(stage)):
            raise PlanRefusedError(
                f"{key} applies to {operation.learns}; none of train.layers {stage.train.layers!r} has them",
                hint=f"Leave {key} out, or train layers with {operation.name}.",
            )
        if isinstance(stage.train, TrainLora) and stage.train.what == "lora":
            raise PlanRefusedError(
                f"{key} applies to the numbers of {operation.name}, and train.what lora leaves them as they are",
                hint=f"Leave {key} out (--set {key}=null), or set train.what to scale+lora.",
            )
        operation.check_sections(sections, own[0])
