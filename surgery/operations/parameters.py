"""Which tensors of a model belong to an operation, by their names."""

from __future__ import annotations

from surgery.operations import OPERATIONS
from surgery.operations.base import Operation

_WITH_PARAMETERS = {name: operation for name, operation in OPERATIONS.items() if not operation.in_config_alone}


def owner(name: str) -> Operation | None:
    """The operation whose module holds a tensor or parameter; None for one of the original model."""
    found = (_WITH_PARAMETERS.get(part) for part in name.split(".")[:-1])
    return next((operation for operation in found if operation is not None), None)


def is_operation(name: str) -> bool:
    """Whether a tensor or parameter belongs to an operation rather than to the original model."""
    return owner(name) is not None


def names_with_parameters() -> tuple[str, ...]:
    """Names of the operations that add parameters."""
    return tuple(_WITH_PARAMETERS)
