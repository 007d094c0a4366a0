"""The errors that users can cause or meet, with their exit codes.

Each message names the given value and its fault; the hint says what to do.
"""

from enum import IntEnum
from typing import ClassVar, Self


class ExitCode(IntEnum):
    """The exit codes of the command line; ``meaning`` is the description in the reference."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Self:
        """A code with its meaning."""
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code

    DONE = 0, "done"
    FAILED = 1, "an unexpected error, or a training that diverged (a loss that is not finite); `doctor` found a problem"
    USAGE = 2, "wrong usage: an option, a file or a model folder; or the hub or the disk does not answer"
    REFUSED = 3, "refused: the operation does not apply to this model, or nothing is left to do"
    VERIFICATION_FAILED = 4, "a verification failed (`verify`, `merge`)"
    SOME_FAILED = 5, "some items of a zoo failed or were refused (`zoo`)"
    INTERRUPTED = 130, "interrupted by Ctrl-C"
    TERMINATED = 143, "terminated by SIGTERM"


def shown(value: object, most: int = 200) -> str:
    """A wrong value as an error message shows it: its repr, shortened to ``most`` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 40]}... ({len(text):,} characters)"


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


class NoTextError(UsageError):
    """Text files without any text (exit code 2)."""


class UnknownKeywordError(UsageError, TypeError):
    """A function was called with a keyword that it does not have (exit code 2)."""


class CheckpointError(SurgeryError):
    """A model folder is missing, broken or hostile (exit code 2)."""

    exit_code = ExitCode.USAGE


class OutputBusyError(CheckpointError):
    """Another run is working on the same output (exit code 2)."""


class PlanRefusedError(SurgeryError):
    """The operation cannot be applied to this model, or there is nothing to do (exit code 3)."""

    exit_code = ExitCode.REFUSED


class NoChoiceError(SurgeryError):
    """A calibration found no choice that holds its bound, or none that gains (exit code 1)."""


class VerificationError(SurgeryError):
    """A check of a converted checkpoint failed (exit code 4)."""

    exit_code = ExitCode.VERIFICATION_FAILED
