"""What is wrong with a file that somebody wrote, and what kind of file it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from surgery.errors import UsageError


@dataclass(frozen=True)
class Problem:
    """One fault: the key's ``path``, the ``line`` (None for ``--set`` and Python), and what is wrong."""

    path: str
    line: int | None
    message: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class SchemaError(UsageError):
    """A file is not valid; ``problems`` has every fault that was found (exit code 2)."""

    def __init__(self, name: str, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} faults" if len(problems) > 1 else "a fault"
        super().__init__("\n".join([f"{name} has {count}:", *(f"  {problem}" for problem in problems)]), hint=hint)


@dataclass(frozen=True)
class Schema:
    """A kind of file.

    Attributes:
        noun: what it is called: "recipe".
        root: the model of the whole file.
        error: what is raised.
        example: a first line, for who gave something else.
        finding: what to do when a file is not there.
        repeated: keys at the top level that hold a list of sections; a key of theirs has no one home.
    """

    noun: str
    root: type[BaseModel]
    error: type[SchemaError]
    example: str
    finding: str
    repeated: tuple[str, ...] = ()
