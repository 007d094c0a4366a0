"""A converted checkpoint that another program saved: config.json has the block, the record of surgery is gone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from surgery.anatomy import read_anatomy
from surgery.checkpoint import CONFIG_NAME, load_config, open_checkpoint
from surgery.checkpoint.record import PLAN_NAME, check_format_version
from surgery.conversion.options import recorded_operations
from surgery.conversion.plan import Plan
from surgery.errors import CheckpointError
from surgery.operations import OPERATIONS

# What is known of the weights of such a folder, and the step of its history that stands for this.
UNKNOWN_WEIGHTS = "saved by another program; weights differ or unknown"
EXTERNAL_STEP = "save"


def is_saved_externally(folder: Path) -> bool:
    """Whether another program saved a converted checkpoint: config.json has the block, but there is no plan.

    Args:
        folder: any model folder.
    """
    if (folder / PLAN_NAME).is_file() or not (folder / CONFIG_NAME).is_file():
        return False
    block = load_config(folder / CONFIG_NAME).get("surgery")
    return isinstance(block, Mapping) and bool(block.get("operations"))


def plan_from_config(folder: Path) -> dict[str, Any]:
    """The plan of such a folder, as far as the block in config.json has it; the files of the source are not known.

    Args:
        folder: for which :func:`is_saved_externally` holds.

    Raises:
        CheckpointError: the block is not valid, or does not fit the tensors.
    """
    checkpoint = open_checkpoint(folder)
    block = checkpoint.config["surgery"]
    check_format_version(block.get("format_version"), folder.name)
    anatomy = read_anatomy(checkpoint)
    operations = recorded_operations(folder.name, anatomy.operations)
    tensors = [tensor for one in operations for tensor in OPERATIONS[one.name].tensors(one, anatomy)]
    new_bytes = sum(4 * size for tensor in tensors for size in tensor.shape)
    content = {
        "format_version": block.get("format_version"),
        "tool_version": block.get("tool_version"),
        "source": block.get("base"),
        "model_type": checkpoint.config.get("model_type"),
        "architecture": (checkpoint.config.get("architectures") or [anatomy.family.architecture])[0],
        "attention": anatomy.family.attention,
        "operations": tuple(dict(options) for options in anatomy.operations),
        "identity": tuple(OPERATIONS[one.name].identity(one) for one in operations),
        "tensors": tuple(tensors),
        "shards": {},
        "kept_files": (),
        "skipped_layers": {},
        "bytes": {"source_tensors": checkpoint.total_bytes - new_bytes, "new_tensors": new_bytes, "placed": 0},
        "warnings": (),
    }
    try:
        plan = TypeAdapter(Plan).validate_python(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise CheckpointError(f"{folder.name}: config.json: surgery: {where}: {problem['msg']}") from error
    return {**plan.to_dict(), "hash": block.get("plan_hash")}
