"""What can be done to attention: one folder per operation, each a strict schema plus a few hooks.

The schema is what the user writes in flags, in a recipe and in config.json: one model, three places. Nothing here
imports torch. An operation is registered by adding it to :data:`OPERATIONS`.
"""

from types import MappingProxyType

from surgery.operations.base import HeadOptions, Operation, OperationOptions, PlannedTensor, parse_layers
from surgery.operations.rope import RopeChange
from surgery.operations.screening import Screening
from surgery.operations.ssmax import SSMax

OPERATIONS: MappingProxyType[str, Operation] = MappingProxyType(
    {operation.name: operation for operation in (SSMax(), Screening(), RopeChange())}
)

__all__ = ["OPERATIONS", "HeadOptions", "Operation", "OperationOptions", "PlannedTensor", "parse_layers"]
