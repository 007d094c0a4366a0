"""The hooks for training: sections of a recipe, controls, schedules, extra loss terms.

Every hook has a default without effect. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from surgery.schemas.section import Section

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class RecipeSection:
    """A section of a recipe that belongs to an operation.

    Attributes:
        schema: its keys; the instance has ``described()``, its content in words.
        help: its description in a stage of a recipe.
        changes_model: whether it changes a model that starts as its source, so that the source can teach it.
    """

    schema: type[Section]
    help: str
    changes_model: bool = False


class StageHooks:
    """Watches one model in one stage of a training; the base does nothing.

    The hooks are those that `surgery.training.extension.Extension` documents.
    """

    term: str | None = None
    loss_may_rise: bool = False

    def begin_pass(self) -> None:
        """Forget the last forward pass."""

    def extra_loss(self) -> torch.Tensor | None:
        """Extra loss term of the last pass, per predicted token, with gradient."""
        return None

    def pass_numbers(self) -> Mapping[str, torch.Tensor]:
        """Numbers about the last pass, for the log."""
        return {}

    def set_parameters(self, step: int, steps: int) -> Mapping[str, float]:
        """Set the parameters that follow a schedule; the values, for the log."""
        return {}

    def numbers(self) -> Mapping[str, Any]:
        """Other numbers for a step's row of the log."""
        return {}

    def held_out_numbers(self, passes: Sequence[Any]) -> Mapping[str, float]:
        """Measured on held-out rows."""
        return {}

    def check_trial(self) -> None:
        """Look at the gradients of the trial step."""


class TrainableOperation:
    """The hooks of an operation that a training asks for.

    Class attributes:
        recipe_sections: keys of a recipe that belong to this operation.
        learns: its learned parameters in words, for messages about ``recipe_sections``.
        extends_positions: whether it lets the model read longer sequences.
    """

    recipe_sections: ClassVar[Mapping[str, RecipeSection]] = MappingProxyType({})
    learns: ClassVar[str] = "learned parameters"
    extends_positions: ClassVar[bool] = False

    def check_sections(self, sections: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Refuse sections of a recipe that do not fit the model.

        Args:
            sections: the given ones of `recipe_sections`.
            options: of the operation, from config.json.

        Raises:
            PlanRefusedError: one of them has no effect on this model.
        """

    def unlearned(self, sections: Mapping[str, Any]) -> Collection[str]:
        """Names of its parameters that get no gradient with these sections of a recipe, since a schedule sets them."""
        return ()

    def stage_hooks(
        self, model: nn.Module, modules: Mapping[int, Any], sections: Mapping[str, Any], layers: Collection[int]
    ) -> StageHooks | None:
        """Watch a model in one stage; None if the operation has no hooks for the stage.

        Args:
            model: that is trained.
            modules: the operation's modules by layer.
            sections: the given ones of `recipe_sections`.
            layers: that the stage trains.
        """
        return None

    def control_options(self, control: str, options: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The options that the operation has in a control; None if it has no such control.

        Args:
            control: name of the control.
            options: of the operation, from config.json; what is returned is as it would be written there.
        """
        return None

    def known_positions(self, options: Mapping[str, Any]) -> int | None:
        """The number of positions of the source model; None if the operation does not change positions.

        Args:
            options: of the operation, from config.json.
        """
        return None
