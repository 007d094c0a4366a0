"""The operations on attention: one folder for each, with a strict schema and a few hooks.

The schema gives the flags of `convert`, the keys of a recipe and the entry in config.json. Nothing here imports torch.
To register an operation, add it to :data:`OPERATIONS`; `base.py` explains how to write one.
"""

from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field

from surgery.operations.base import HeadOptions, Operation, OperationOptions, PlannedTensor
from surgery.operations.layer_numbers import parse_layers
from surgery.operations.rope import RopeOperation
from surgery.operations.screening import ScreeningOperation
from surgery.operations.ssmax import SSMaxOperation

OPERATIONS: MappingProxyType[str, Operation] = MappingProxyType(
    {operation.name: operation for operation in (SSMaxOperation(), ScreeningOperation(), RopeOperation())}
)

# The default of `surgery.convert`.
DEFAULT_OPERATION: str = next(iter(OPERATIONS))

# An entry of a list of operations, in a recipe or a manifest.
if TYPE_CHECKING:
    AnyOperation: TypeAlias = OperationOptions
else:
    _OPTIONS = reduce(or_, (operation.options for operation in OPERATIONS.values()))
    AnyOperation = Annotated[_OPTIONS, Field(discriminator="name")]

__all__ = [
    "DEFAULT_OPERATION",
    "OPERATIONS",
    "AnyOperation",
    "HeadOptions",
    "Operation",
    "OperationOptions",
    "PlannedTensor",
    "parse_layers",
]
