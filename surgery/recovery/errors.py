"""What can go wrong in a recovery run, beyond the errors that all rooms share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgery.errors import SurgeryError, UsageError


@dataclass(frozen=True)
class Problem:
    """One fault of a recipe: the key's ``path``, the ``line`` (None for ``--set`` and Python), and what is wrong."""

    path: str
    line: int | None
    message: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class RecipeError(UsageError):
    """A recipe is not valid; ``problems`` has every fault that was found (exit code 2)."""

    def __init__(self, name: str, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} faults" if len(problems) > 1 else "a fault"
        super().__init__("\n".join([f"{name} has {count}:", *(f"  {problem}" for problem in problems)]), hint=hint)


class DivergedError(SurgeryError):
    """The loss or the gradient stopped being a finite number (exit code 1)."""


class TrainingStoppedError(SurgeryError):
    """Ctrl-C or SIGTERM: the step was finished and a checkpoint saved (exit code 130)."""

    exit_code = 130
