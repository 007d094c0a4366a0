"""Which controls of a run are written as checkpoints, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from surgery.checkpoint import Checkpoint
from surgery.conversion.plan import PreparedPlan
from surgery.errors import SurgeryError
from surgery.recovery.layout import Variant
from surgery.recovery.origin import find_origin
from surgery.recovery.quantized import quantization
from surgery.recovery.recipe import Recipe
from surgery.recovery.train_choice import TrainLora, TrainOperation

IS_SOURCE = "the recipe trains only the operation, so this control is the source model"


@dataclass(frozen=True)
class ControlPlan:
    """A control of a run.

    Attributes:
        name: of the control.
        output: folder for its checkpoint; None if none is written.
        reason: why none is written.
    """

    name: Variant
    output: str | None = None
    reason: str | None = None

    @property
    def note(self) -> str | None:
        """That no checkpoint is written, for users; None if one is."""
        return f"the control {self.name} gets no checkpoint: {self.reason}" if self.reason else None


def control_folder(output: Path, control: str) -> Path:
    """The folder for a control's checkpoint: beside the output of the run, with the control's name in its own."""
    named = output if output.name not in ("", "..") else output.resolve()
    return named.with_name(f"{named.name}-{control}")


def plan_controls(recipe: Recipe, checkpoint: Checkpoint, conversion: PreparedPlan | None) -> tuple[ControlPlan, ...]:
    """What becomes of each control of a recipe.

    Args:
        recipe: of the run.
        checkpoint: of the model, or the planned one.
        conversion: that the recipe asks for.
    """
    found = []
    for control in recipe.controls:
        reason = _reason_against(control, recipe.stage_recipes(), checkpoint, conversion)
        output = None if reason else str(control_folder(Path(recipe.output), control))
        found.append(ControlPlan(control, output, reason))
    return tuple(found)


def _reason_against(
    control: Variant, stages: Sequence[Recipe], checkpoint: Checkpoint, conversion: PreparedPlan | None
) -> str | None:
    """Why a control is trained and compared, but not written; None if it is written."""
    if control == "untouched" and all(isinstance(stage.train, TrainOperation) for stage in stages):
        return IS_SOURCE
    try:
        origin = find_origin(checkpoint, conversion)
        if control == "untouched":
            return None
        origin.plan_of(control)
    except SurgeryError as error:
        return error.message
    # An adapter alone would name a base that is nowhere: it is merged, whatever the recipe says for the run itself.
    if quantization(checkpoint.config) and any(isinstance(stage.train, TrainLora) for stage in stages):
        return "quantized weights cannot hold its adapter, and the base of the adapter is made for the run alone"
    return None
