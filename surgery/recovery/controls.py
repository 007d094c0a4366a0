"""The controls of a run: models without the operations, or with constants in place of learned parameters.

``untouched`` switches all operations off, changed positions too, so the run trains the source model. Every other
control replaces the learned parameters of the operations that have it by constants; an operation that is only in
config.json stays on. No file is written.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    # An operation that is only in config.json stays on: the comparison shows the effect of the parameters alone.
    learning = [one for one in layout.operations if not OPERATIONS[str(one["name"])].in_config_alone]
    for options in learning or layout.operations:
        if not OPERATIONS[str(options["name"])].has_control(variant, options):
            kind = options.get("form") or options.get("name")
            raise PlanRefusedError(
                f"control: {variant} puts a constant in place of what the length changes; {kind} has none",
                hint="Set control: untouched.",
            )


def apply_control(model: nn.Module, variant: Variant, layout: Layout) -> None:
    """Change a freshly loaded model into the control, in place."""
    if variant == "operated":
        return
    from surgery.loading import operation_modules, switch_off

    if variant == "untouched":
        switch_off(model)
        return
    for name, module in operation_modules(model).items():
        parent, _, kind = name.rpartition(".")
        replaced = OPERATIONS[kind].control_module(variant, module, _options(layout, name))
        setattr(model.get_submodule(parent), kind, replaced)


def _options(layout: Layout, name: str) -> Mapping[str, Any]:
    layer = layout.layer(name + ".")
    kind = name.rpartition(".")[2]
    return next(dict(item) for item in layout.operations if item["name"] == kind and layer in item["layers"])
