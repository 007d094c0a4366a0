"""What lies where an item's output belongs, by a cheap look: names, headers and JSON alone; no weight is read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from surgery.anatomy.reading import MODEL_TYPE_PREFIX
from surgery.checkpoint import CONFIG_NAME, load_json, open_checkpoint, quote
from surgery.checkpoint.record import PLAN_NAME
from surgery.conversion.plan import MODELING_NAME
from surgery.errors import CheckpointError, SurgeryError, UsageError

OUT_OF_DATE = (
    "the output is there and was made from something else: the source, the operations, the verification or the "
    "version changed; --force replaces it"
)
GONE = "its output is no longer there"
_LARGEST_PLAN = 64_000_000


def is_there(output: Path) -> bool:
    """Whether something lies in the folder of an output."""
    try:
        return output.is_dir() and any(output.iterdir())
    except OSError:  # a folder that cannot be listed is in the way all the same
        return True


def damage(output: Path) -> str | None:
    """What is broken or missing in an output that was whole once, or None.

    What its plan, index and headers name must be there, and config.json must be the one that was written with the
    plan. A byte of a weight that has changed is not noticed: `surgery verify` reads all of them.
    """
    try:
        plan = load_json(output / PLAN_NAME, limit=_LARGEST_PLAN)
        checkpoint = open_checkpoint(output)
    except SurgeryError as error:
        return f"its output is damaged: {error.message.rstrip('.')}"
    except OSError as error:
        return f"its output is damaged: it cannot be read: {error.strerror}"
    missing = sorted(_named(plan) - checkpoint.file_sizes.keys())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return f"its output is damaged: {quote(missing[0])}{more}, which {PLAN_NAME} names, is missing"
    block = checkpoint.config.get("surgery")
    hash_there = block.get("plan_hash") if isinstance(block, dict) else None
    if (hash_there, checkpoint.config.get("model_type")) != (plan.get("hash"), plan.get("model_type")):
        return f"its output is damaged: {CONFIG_NAME} is not the one that belongs to {PLAN_NAME}"
    return None


def _named(plan: dict[str, Any]) -> set[str]:
    """The files that a plan says are in the output, as far as it can be read."""
    shards, kept = plan.get("shards"), plan.get("kept_files")
    names = [*(shards.values() if isinstance(shards, dict) else ()), *(kept if isinstance(kept, list) else ())]
    if str(plan.get("model_type")).startswith(MODEL_TYPE_PREFIX):
        names.append(MODELING_NAME)
    return {name for name in names if isinstance(name, str)}


def check_is_folder(output: Path) -> None:
    """Refuse a file where the folder of all outputs is to be.

    Raises:
        UsageError: it is a file, or would lie in one, or no file system takes its name.
    """
    for place in (output, *output.parents):
        try:
            in_the_way = place.exists() and not place.is_dir()
        except OSError as error:  # a name that is too long
            raise UsageError(f"The output {quote(str(output))} cannot be: {error.strerror}.") from error
        if in_the_way:
            where = "is a file, not a folder" if place == output else f"would lie in {quote(place.name)}, a file"
            raise UsageError(
                f"The output {quote(str(output))} {where}.", hint="Choose another folder for `output` in the manifest."
            )


def check_writable(output: Path) -> None:
    """Refuse a place where nothing can be written, without writing there.

    Raises:
        CheckpointError: it is not ours to write to, is read-only, or has no disk at all (as /proc).
    """
    place = next(place for place in (output, *output.parents) if place.exists())
    reason = None
    if not os.access(place, os.W_OK | os.X_OK):
        reason = f"{quote(str(place))} is not writable"
    elif shutil.disk_usage(place).total == 0:  # root may write anywhere, also where no file can be
        reason = f"{quote(str(place))} is no place on a disk"
    if reason is not None:
        raise CheckpointError(
            f"The output {quote(str(output))} cannot be written: {reason}.",
            hint="Choose another folder for `output` in the manifest.",
        )
