"""The state of an output folder, from file names, headers and JSON alone; no weights are read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from surgery.anatomy.anatomy import MODEL_TYPE_PREFIX
from surgery.checkpoint import CONFIG_NAME, load_json, open_checkpoint, quote
from surgery.checkpoint.record import PLAN_NAME
from surgery.conversion.code import recorded_code
from surgery.errors import CheckpointError, SurgeryError, UsageError

# In the folder of the outputs: the ledger, and what interrupted calibrations keep.
STATE_FOLDER = ".surgery-zoo"
OUT_OF_DATE = (
    "the output is out of date: the source, the operations, the calibration, the verification or the version of "
    "surgery changed; --force replaces it"
)
GONE = "its output was deleted"
_LARGEST_PLAN = 64_000_000


def output_exists(output: Path) -> bool:
    """Whether the folder of an output holds any file."""
    try:
        return output.is_dir() and any(output.iterdir())
    except OSError:  # a folder that cannot be listed cannot be written either
        return True


def find_damage(output: Path) -> str | None:
    """What is broken or missing in an output that was complete once; None if nothing is.

    All files that its plan, index and headers name must exist, and config.json must belong to the plan. A changed byte
    of a weight is not noticed; `surgery verify` reads all bytes.
    """
    try:
        plan = load_json(output / PLAN_NAME, limit=_LARGEST_PLAN)
        checkpoint = open_checkpoint(output)
    except SurgeryError as error:
        return f"its output is damaged: {error.message.rstrip('.')}"
    except OSError as error:
        return f"its output is damaged: it cannot be read: {error.strerror}"
    missing = sorted(_named(output, plan) - checkpoint.file_sizes.keys())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return f"its output is damaged: {quote(missing[0])}{more} named in {PLAN_NAME} is missing"
    block = checkpoint.config.get("surgery")
    hash_there = block.get("plan_hash") if isinstance(block, dict) else None
    if (hash_there, checkpoint.config.get("model_type")) != (plan.get("hash"), plan.get("model_type")):
        return f"its output is damaged: {CONFIG_NAME} does not belong to {PLAN_NAME}"
    return None


def _named(output: Path, plan: dict[str, Any]) -> set[str]:
    """The files that a plan names; malformed parts of the plan are ignored."""
    shards, kept = plan.get("shards"), plan.get("kept_files")
    names = [*(shards.values() if isinstance(shards, dict) else ()), *(kept if isinstance(kept, list) else ())]
    if str(plan.get("model_type")).startswith(MODEL_TYPE_PREFIX):
        names += recorded_code(output, plan)
    return {name for name in names if isinstance(name, str)}


def check_is_folder(output: Path) -> None:
    """Check that the folder of all outputs is not a file.

    Raises:
        UsageError: it is a file, would lie in one, or has a name that the file system rejects.
    """
    for place in (output, *output.parents):
        try:
            in_the_way = place.exists() and not place.is_dir()
        except OSError as error:  # a name that is too long
            raise UsageError(f"the output {quote(str(output))} cannot exist: {error.strerror}") from error
        if in_the_way:
            where = "is a file, not a folder" if place == output else f"would lie in {quote(place.name)}, a file"
            raise UsageError(
                f"the output {quote(str(output))} {where}", hint="Choose another folder for `output` in the manifest."
            )


def check_writable(output: Path) -> None:
    """Check that a folder is writable, without writing to it.

    Raises:
        CheckpointError: there is no permission, it is read-only, or it is not on a disk (like /proc).
    """
    place = next(place for place in (output, *output.parents) if place.exists())
    reason = None
    if not os.access(place, os.W_OK | os.X_OK):
        reason = f"{quote(str(place))} is not writable"
    elif shutil.disk_usage(place).total == 0:  # root has permission even where no file can be created
        reason = f"{quote(str(place))} is not on a disk"
    if reason is not None:
        raise CheckpointError(
            f"the output {quote(str(output))} cannot be written: {reason}",
            hint="Choose another folder for `output` in the manifest.",
        )
