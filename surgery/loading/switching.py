"""Find a model's operations, and switch them off: the model as it was, with the same weights and no second copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def operation_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The operations' own modules of a model, by name (``model.layers.0.self_attn.ssmax``)."""
    from surgery.operations import OPERATIONS

    return {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in OPERATIONS}


@contextmanager
def operations_off(model: torch.nn.Module) -> Iterator[None]:
    """The model as it was before the operation, whichever way its code was loaded."""
    modules: list[Any] = list(operation_modules(model).values())
    before = [module.enabled for module in modules]
    for module in modules:
        module.enabled = False
    try:
        yield
    finally:
        for module, enabled in zip(modules, before, strict=True):
            module.enabled = enabled
