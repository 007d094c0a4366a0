"""The controls of a run: the source model, or the model with constants in place of learned parameters.

``untouched`` switches all operations off, changed positions too, so the run trains the source model. In every other
control each operation has the options that it gives for the control (`Operation.control_options`) and starts anew; an
operation that is only in config.json stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from surgery.errors import PlanRefusedError
from surgery.operations import OPERATIONS
from surgery.recovery.layout import Layout, Variant

if TYPE_CHECKING:
    from torch import nn


def check_control(variant: Variant, layout: Layout) -> None:
    """Refuse a control without effect.

    Raises:
        PlanRefusedError: the control needs learned parameters, and an operation has none.
    """
    if variant in ("operated", "untouched"):
        return
    control_operations(variant, layout.operations)
    # An operation that is only in config.json stays on: the comparison shows the effect of the parameters alone.
    if all(OPERATIONS[str(options["name"])].in_config_alone for options in layout.operations):
        raise _no_control(variant, layout.operations[0])


def control_operations(variant: Variant, operations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The options of all operations in a control, as config.json would have them.

    Args:
        variant: the control, other than ``untouched``.
        operations: of the model, from config.json.

    Raises:
        PlanRefusedError: an operation has no such control.
    """
    found: list[Mapping[str, Any]] = []
    for options in operations:
        operation = OPERATIONS[str(options["name"])]
        own = options if operation.in_config_alone else operation.control_options(variant, options)
        if own is None:
            raise _no_control(variant, options)
        found.append(own)
    return found


def apply_control(model: nn.Module, variant: Variant, layout: Layout) -> None:
    """Change a freshly loaded model into the control, in place."""
    if variant == "operated":
        return
    from surgery.loading import operation_modules, switch_off

    if variant == "untouched":
        switch_off(model)
        return
    operations = control_operations(variant, layout.operations)
    for name, module in operation_modules(model).items():
        parent, _, kind = name.rpartition(".")
        layer = layout.layer(f"{name}.")
        options = next(dict(own) for own in operations if own["name"] == kind and layer in own["layers"])
        device = next(module.parameters()).device
        setattr(model.get_submodule(parent), kind, type(module)(options, module.num_heads).to(device))


def _no_control(variant: Variant, options: Mapping[str, Any]) -> PlanRefusedError:
    kind = options.get("form") or options.get("name")
    return PlanRefusedError(
        f"control: {variant} puts a constant in place of what the length changes; {kind} has none",
        hint="Set control: untouched.",
    )
