"""The model that is trained, and the controls: the same run without the operation, or with constants in its place.

``untouched`` switches the operation off for good, so the same tokens train the model as it was. ``temperature`` puts
one constant per head where the operation had one number that length multiplies: m(n) = b, which is the form ``bias``
with s = 0. Both happen to the model in memory; no file is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgery.errors import PlanRefusedError
from surgery.recovery.preparing import Layout, Variant

if TYPE_CHECKING:
    from torch import nn


def check_control(variant: Variant, layout: Layout) -> None:
    """Refuse a control that would compare nothing.

    Raises:
        PlanRefusedError: ``temperature`` for an operation that has no learned numbers.
    """
    if variant != "temperature":
        return
    for operation in layout.operations:
        if operation.get("name") != "ssmax" or operation.get("form") == "logn":
            kind = operation.get("form") or operation.get("name")
            raise PlanRefusedError(
                f"control: temperature learns a constant in place of each number per head; {kind} has none.",
                hint="Set control: untouched.",
            )


def become(model: nn.Module, variant: Variant, layout: Layout) -> None:
    """Make a freshly loaded model the variant, in place."""
    if variant == "operated":
        return
    for name, module in _operations(model):
        if variant == "untouched":
            module.enabled = False
        else:
            parent, _, place = name.rpartition(".")
            setattr(model.get_submodule(parent), place, _constant(module, _options(layout, name)))


def _operations(model: nn.Module) -> list[tuple[str, Any]]:
    from surgery.loading import operation_modules

    return list(operation_modules(model).items())


def _options(layout: Layout, name: str) -> dict[str, Any]:
    layer = layout.layer(name + ".")
    kind = name.rpartition(".")[2]
    return next(dict(item) for item in layout.operations if item["name"] == kind and layer in item["layers"])


def _constant(module: Any, options: dict[str, Any]) -> Any:
    """The operation's module with m(n) = b, b = 1 at first."""
    import torch

    device = next(module.parameters()).device
    own = type(module)({**options, "form": "bias", "start": {"scale": 0.0, "bias": 1.0}}, module.num_heads).to(device)
    # A buffer rather than a parameter: nothing can train it, whoever switches gradients on.
    zeros = torch.zeros_like(own.scale.data)
    del own.scale
    own.register_buffer("scale", zeros, persistent=False)
    return own
