"""The schema of a kind of file, and the errors that validation finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from surgery.errors import UsageError


@dataclass(frozen=True)
class Problem:
    """One error in a file.

    Attributes:
        path: of the key, with dots.
        line: line number; None for ``--set`` and for values from Python.
        message: what is wrong.
    """

    path: str
    line: int | None
    message: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class SchemaError(UsageError):
    """A file is not valid; ``problems`` lists every error (exit code 2)."""

    def __init__(self, name: str, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} errors" if len(problems) > 1 else "an error"
        super().__init__("\n".join([f"{name} has {count}:", *(f"  {problem}" for problem in problems)]), hint=hint)


@dataclass(frozen=True)
class Schema:
    """A kind of file.

    Attributes:
        noun: name of the kind, such as "recipe".
        root: the model of the whole file.
        error: the exception to raise.
        example: an example line, for the message about a file of another kind.
        missing_hint: hint for a file that does not exist.
        repeated: top-level keys that hold a list of sections; keys of these sections have no single place.
    """

    noun: str
    root: type[BaseModel]
    error: type[SchemaError]
    example: str
    missing_hint: str
    repeated: tuple[str, ...] = ()
