"""Names of what a converted checkpoint carries along of its own making."""

from typing import Any

from surgery.errors import CheckpointError

RECORD_FOLDER = "surgery"
FORMAT_VERSION = 1  # of converted checkpoints; newer ones are refused
PLAN_NAME = f"{RECORD_FOLDER}/plan.json"
HISTORY_NAME = f"{RECORD_FOLDER}/history.json"
SHARDS_NAME = f"{RECORD_FOLDER}/shards.json"
CALIBRATION_NAME = f"{RECORD_FOLDER}/calibration.json"
VERIFICATION_NAME = f"{RECORD_FOLDER}/verify.json"
EVALUATION_NAME = f"{RECORD_FOLDER}/evaluate.json"


def check_format_version(version: Any, name: str) -> None:
    """Refuse a converted checkpoint of a newer format than this tool knows.

    Args:
        version: what its config or plan says; None where it says nothing.
        name: of the checkpoint, for the message.

    Raises:
        CheckpointError: it is newer.
    """
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{name}: format version {version} is newer than this tool's {FORMAT_VERSION}",
            hint="Install a newer model-surgery.",
        )
