"""What can be done to attention: one folder per operation, each a strict schema plus a few hooks.

The schema is what the user writes in flags, in a recipe and in config.json: one model, three places. Nothing here
imports torch. An operation is registered by adding it to :data:`OPERATIONS`; `base.py` says what to write.
"""

from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field

from surgery.operations.base import HeadOptions, Operation, OperationOptions, PlannedTensor, parse_layers
from surgery.operations.rope import RopeOperation
from surgery.operations.screening import ScreeningOperation
from surgery.operations.ssmax import SSMaxOperation

OPERATIONS: MappingProxyType[str, Operation] = MappingProxyType(
    {operation.name: operation for operation in (SSMaxOperation(), ScreeningOperation(), RopeOperation())}
)

# Used by `surgery.convert` where none is named.
DEFAULT_OPERATION: str = next(iter(OPERATIONS))

# What stands in a list of operations, in a recipe or a manifest.
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
