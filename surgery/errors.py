"""Every error that a user can cause or meet, with the exit code that the command line gives it.

Each message says what was given, what is wrong with it, and what to do.
"""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """How a command of the command line ends."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    VERIFICATION_FAILED = 4
    SOME_FAILED = 5
    INTERRUPTED = 130
    TERMINATED = 143


class SurgeryError(Exception):
    """Base of all expected errors; shown without a traceback unless ``-v`` is given."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class UsageError(SurgeryError):
    """An argument, option or recipe is wrong (exit code 2)."""

    exit_code = ExitCode.USAGE


class CheckpointError(SurgeryError):
    """A model folder is missing, broken or hostile (exit code 2)."""

    exit_code = ExitCode.USAGE


class OutputBusyError(CheckpointError):
    """Another run is working on the same output (exit code 2)."""


class PlanRefusedError(SurgeryError):
    """The operation cannot be applied to this model, or there is nothing to do (exit code 3)."""

    exit_code = ExitCode.REFUSED


class VerificationError(SurgeryError):
    """A check of a converted checkpoint failed (exit code 4)."""

    exit_code = ExitCode.VERIFICATION_FAILED
