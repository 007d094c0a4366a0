"""What can go wrong in a recovery run, beyond the errors that all rooms share."""

from __future__ import annotations

from surgery.errors import ExitCode, SurgeryError
from surgery.schemas import SchemaError


class RecipeError(SchemaError):
    """A recipe is not valid; ``problems`` has every fault that was found (exit code 2)."""


class DivergedError(SurgeryError):
    """The loss or the gradient stopped being a finite number (exit code 1)."""


class TrainingStoppedError(SurgeryError):
    """Ctrl-C or SIGTERM: the step was finished and a checkpoint saved (exit code 130)."""

    exit_code = ExitCode.INTERRUPTED
