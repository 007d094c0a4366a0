"""A suite: one strict schema of the parts that are measured, and a suite by its name or file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Field, PositiveFloat, ValidationError

from surgery.data import Document, read_documents
from surgery.errors import UsageError
from surgery.evaluation.measures import MEASURES
from surgery.evaluation.part import PartOptions, StrictModel
from surgery.schemas import Keys, Problem, Schema, SchemaError, load_yaml, problems_of, read_text
from surgery.schemas.shipped import shipped_file

DEFAULT = "quick"

# The options of any measure.
if TYPE_CHECKING:
    Part: TypeAlias = PartOptions
else:
    Part = reduce(or_, (kind.options for kind in MEASURES.values()))


class Suite(StrictModel):
    """A list of parts to measure."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Results are stored under this name.")
    text: list[str] = Field(default=[], description="Text files, folders and globs; --text replaces them.")
    margin: PositiveFloat = Field(
        default=0.005, description="Change of the loss, in nats per token, that still counts as kept."
    )
    score_margin: PositiveFloat = Field(
        default=0.01, description="Change of a score between 0 and 1 that still counts as kept."
    )
    parts: list[Annotated[Part, Field(discriminator="kind")]] = Field(min_length=1, description="The parts, in order.")

    @property
    def reads_text(self) -> bool:
        """Whether any part reads texts."""
        return any(part.texts != "none" for part in self.parts)

    @property
    def needs_text(self) -> bool:
        """Whether any part cannot be measured without texts."""
        return any(part.texts == "needed" for part in self.parts)

    def changed(self, *, length: int | None = None, documents: int | None = None) -> Suite:
        """The suite with another length and number of sequences, in every part that has one.

        Raises:
            UsageError: no part reads texts, or the length is too small for a part.
        """
        given = {name: value for name, value in (("length", length), ("documents", documents)) if value is not None}
        for name, value in given.items():
            if not any(part.overrides({name: value}) for part in self.parts):
                raise UsageError(f"--{name} has no effect: no part of the suite {self.name} takes another number")
        return self.model_copy(update={"parts": [_with(part, given) for part in self.parts]})

    def documents(self, given: Sequence[str | Path]) -> list[Document]:
        """The texts to measure on; none where no part needs any.

        Args:
            given: files, folders and globs, in place of the suite's.

        Raises:
            UsageError: texts are given and not read, or needed and not given; or a file cannot be read.
        """
        patterns = given or self.text
        if not self.reads_text:
            if given:
                raise UsageError(f"--text has no effect: no part of the suite {self.name} reads texts")
            return []
        if not patterns and not self.needs_text:
            return []
        if not patterns:
            raise UsageError(
                "no text is given to measure on",
                hint="Give --text with files, folders or globs of plain text that the model was not trained on: "
                '--text "texts/**/*.md". The suites `retrieval` and `recall` need none.',
            )
        return read_documents(patterns)


class SuiteError(SchemaError):
    """A suite is not valid; ``problems`` lists every fault (exit code 2)."""


_SCHEMA = Schema(
    noun="suite",
    root=Suite,
    error=SuiteError,
    example="name: my-suite",
    missing_hint="`surgery evaluate --list-suites` lists the shipped suites.",
    repeated=("parts",),
)


def read_suite(suite: str | Path | Suite | Mapping[str, Any]) -> Suite:
    """A shipped suite by its name, a suite from a file, or a suite in Python.

    Raises:
        SuiteError: the suite is not valid; the error lists every fault.
        UsageError: there is no such suite or file.
    """
    if isinstance(suite, Suite):
        return suite
    lines: dict[Keys, int] = {}
    problems: list[Problem] = []
    if isinstance(suite, Mapping):
        name, data = "the suite", dict(suite)
    else:
        name = str(suite)
        is_file = Path(name).suffix in (".yaml", ".yml") or Path(name).exists()
        text = read_text(Path(name), _SCHEMA) if is_file else shipped_file("suites", name).text
        data = load_yaml(text, name, lines, problems, _SCHEMA)
    try:
        valid = Suite.model_validate(data)
    except ValidationError as error:
        problems += [problem for problem in problems_of(error, data, lines, _SCHEMA) if problem not in problems]
    if problems:
        raise SuiteError(name, sorted(problems, key=lambda problem: (problem.line is None, problem.line or 0)))
    return valid


def _with(part: PartOptions, given: Mapping[str, int]) -> PartOptions:
    try:
        return type(part).model_validate({**part.model_dump(), **part.overrides(given)})
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]) if first["loc"] else "--length"
        raise UsageError(f"{option} {first['input']}: {first['msg'].lower()}") from error
