"""The plan of the same conversion with other options of its operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from surgery.anatomy import Anatomy
from surgery.conversion.options import parse_operation
from surgery.conversion.plan import Plan
from surgery.operations import OPERATIONS
from surgery.operations.code import code_hashes, travelling_code
from surgery.version import __version__


def with_other_options(plan: Plan, operations: Sequence[Mapping[str, Any]], anatomy: Anatomy) -> Plan:
    """A plan for the same source with the same operations on the same layers, which have other options.

    Args:
        plan: of the conversion.
        operations: resolved options of each operation, in the order of the plan; those of an operation that is only in
            config.json are as in the plan.
        anatomy: of the source, or of the converted checkpoint.

    Raises:
        UsageError: options are not valid.
    """
    before = [parse_operation(options) for options in plan.operations]
    after = [parse_operation(options) for options in operations]
    tensors = tuple(tensor for own in after for tensor in OPERATIONS[own.name].tensors(own, anatomy))
    outdated = {warning for own in before for warning in OPERATIONS[own.name].warnings(own, anatomy)}
    warnings = [warning for own in after for warning in OPERATIONS[own.name].warnings(own, anatomy)]
    return replace(
        plan,
        tool_version=__version__,
        operations=tuple(dict(options) for options in operations),
        identity=tuple(OPERATIONS[own.name].identity(own) for own in after),
        tensors=tensors,
        bytes={**plan.bytes, "new_tensors": sum(4 * size for tensor in tensors for size in tensor.shape)},
        warnings=(*warnings, *(warning for warning in plan.warnings if warning not in outdated)),
        code=code_hashes(travelling_code(own.name for own in after)) if plan.has_code else {},
    )
