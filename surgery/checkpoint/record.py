"""The record that a converted checkpoint carries: the names of its files, and the version of its format."""

from typing import Any

from surgery.errors import CheckpointError

RECORD_FOLDER = "surgery"
FORMAT_VERSION = 1  # of converted checkpoints; newer ones are refused
ENTRY_NAME = "modeling_surgery.py"  # the code that config.json names
PLAN_NAME = f"{RECORD_FOLDER}/plan.json"
HISTORY_NAME = f"{RECORD_FOLDER}/history.json"
NEW_NAME = f"{RECORD_FOLDER}/new.json"  # of a model that `surgery new` made
MERGE_NAME = f"{RECORD_FOLDER}/merge.json"  # of weights that hold what operations had learned
# A folder with one of these was written by surgery.
OWN_RECORDS = (PLAN_NAME, HISTORY_NAME, NEW_NAME, MERGE_NAME)
SHARDS_NAME = f"{RECORD_FOLDER}/shards.json"
CALIBRATION_NAME = f"{RECORD_FOLDER}/calibration.json"
VERIFICATION_NAME = f"{RECORD_FOLDER}/verify.json"
EVALUATION_NAME = f"{RECORD_FOLDER}/evaluate.json"


def check_format_version(version: Any, name: str) -> None:
    """Refuse a converted checkpoint of a newer format.

    Args:
        version: from its config or plan; None if it has none.
        name: of the checkpoint, for the message.

    Raises:
        CheckpointError: the format is newer than this version of surgery reads.
    """
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{name}: format version {version} is newer than {FORMAT_VERSION}, which this version of surgery reads",
            hint="Install a newer model-surgery.",
        )
