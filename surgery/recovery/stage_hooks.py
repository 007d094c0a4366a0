"""The hooks of operations in a stage of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from surgery.errors import SurgeryError
from surgery.loading import operation_modules
from surgery.operations import OPERATIONS
from surgery.operations.training import StageHooks
from surgery.recovery.layout import Layout
from surgery.recovery.operation_sections import given_sections
from surgery.recovery.parameters import operation_parameters
from surgery.recovery.recipe import Recipe
from surgery.training.sharding import whole


class OperationNumbers(StageHooks):
    """Logs the learned parameters of every operation, by layer, and checks that they get gradients."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self._model, self._layout = model, layout

    def numbers(self) -> Mapping[str, Any]:
        """Mean, least and greatest value over heads of each trained parameter, by layer."""
        return {"scale": scale_by_layer(self._model, self._layout)}

    def check_trial(self) -> None:
        """Check that every trained parameter of an operation has a gradient.

        Raises:
            SurgeryError: a parameter has no gradient.
        """
        without = [name for name, parameter in operation_parameters(self._model).items() if parameter.grad is None]
        if without:
            raise SurgeryError(
                f"{len(without)} parameters of the operation get no gradient, for example {without[0]}: training would "
                "not change them"
            )


def scale_by_layer(model: nn.Module, layout: Layout) -> dict[str, dict[str, list[float]]]:
    """Mean, least and greatest value over heads of each trained parameter of an operation, by name and layer."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, parameter in operation_parameters(model).items():
        values = whole(parameter.detach()).float()
        numbers = [values.mean().item(), values.min().item(), values.max().item()]
        layer = str(layout.layer(name))
        found.setdefault(name.rpartition(".")[2], {})[layer] = [round(number, 7) for number in numbers]
    return found


def stage_hooks(model: nn.Module, layout: Layout, stage: Recipe) -> Sequence[StageHooks]:
    """The hooks of a stage: `OperationNumbers`, and the hooks of each operation of the model."""
    layers = set(layout.chosen(stage))
    found: list[StageHooks] = [OperationNumbers(model, layout)]
    for operation in OPERATIONS.values():
        modules = {
            number: module
            for name, module in operation_modules(model).items()
            if name.rpartition(".")[2] == operation.name and (number := layout.layer(f"{name}.")) is not None
        }
        hooks = operation.stage_hooks(model, modules, given_sections(stage, operation.name), layers)
        if hooks is not None:
            found.append(hooks)
    return found
