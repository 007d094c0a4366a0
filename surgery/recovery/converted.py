"""A recipe with a source and operations: the planned checkpoint, and the converted one.

The plan of a run needs only names, shapes and sizes, so a dry run writes nothing. A run converts into its
training folder, trains the result, and deletes that folder at the end.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from surgery.checkpoint import Checkpoint, Source, open_checkpoint
from surgery.checkpoint.headers import TensorInfo
from surgery.conversion.config import converted_config
from surgery.conversion.execution import default_output, execute
from surgery.conversion.plan import NEW_SHARD, PreparedPlan, make_plan
from surgery.recovery.recipe import Recipe

_BYTES = 4


def plan_operations(recipe: Recipe) -> PreparedPlan | None:
    """The plan of the conversion in a recipe; None for a recipe without operations.

    Raises:
        SurgeryError: as `make_plan`.
    """
    return make_plan(recipe.model, recipe.operations) if recipe.operations else None


def planned_checkpoint(prepared: PreparedPlan) -> Checkpoint:
    """The checkpoint that the conversion will write, with the folder of the source; enough for plans."""
    checkpoint, plan = prepared.checkpoint, prepared.plan
    tensors = dict(checkpoint.tensors)
    end = 0
    for tensor in plan.tensors:
        begin = end
        info = TensorInfo(tensor.name, "F32", tensor.shape, NEW_SHARD, begin, begin)
        end = begin + _BYTES * info.parameters
        tensors[tensor.name] = replace(info, end=end)
    return replace(
        checkpoint,
        config=converted_config(prepared),
        tensors=MappingProxyType(tensors),
        total_bytes=checkpoint.total_bytes + end,
        total_parameters=checkpoint.total_parameters + end // _BYTES,
    )


def converted_source(prepared: PreparedPlan, folder: Path) -> tuple[Source, Checkpoint]:
    """The converted checkpoint in a folder: written now, or kept from an interrupted run."""
    if not folder.is_dir():  # it appears by a rename, so it is complete
        execute(prepared, folder)
    source = Source(folder=folder, name=default_output(prepared).name, commit=None, hub_id=None)
    return source, open_checkpoint(source)
