"""What an evaluation returns: frozen values of plain numbers, strings and tuples, to JSON and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from surgery.errors import UsageError
from surgery.evaluation.attention.result import AttentionAt, AttentionResult, AttentionSection, ByHead
from surgery.evaluation.data_use import DataUse, TextUse
from surgery.evaluation.estimates import Estimate, Finding, Interval, Verdict, Word, perplexity
from surgery.evaluation.generation.result import (
    Continuation,
    GenerationPrompt,
    GenerationResult,
    GenerationSection,
)
from surgery.evaluation.loss.result import Bucket, CurvePoint, LossResult, LossSection
from surgery.evaluation.measures import MEASURES
from surgery.evaluation.models import ModelUse
from surgery.evaluation.retrieval.result import Grid, RetrievalResult, RetrievalSection, Score
from surgery.evaluation.speed.result import MemoryUse, SpeedCase, SpeedResult, SpeedSection
from surgery.evaluation.tasks.result import TaskScore, TasksResult, TasksSection
from surgery.operations.learned_numbers import LearnedNumbers, Multiplier, NegativeHead
from surgery.result_table import ResultTable, ShownAsTable

if TYPE_CHECKING:
    from surgery.reporting.pictures import Pictures

__all__ = [
    "AttentionAt",
    "AttentionResult",
    "AttentionSection",
    "Bucket",
    "ByHead",
    "Continuation",
    "CurvePoint",
    "DataUse",
    "Estimate",
    "EvaluationResult",
    "Finding",
    "GenerationPrompt",
    "GenerationResult",
    "GenerationSection",
    "Grid",
    "Interval",
    "LearnedNumbers",
    "LossResult",
    "LossSection",
    "MemoryUse",
    "ModelUse",
    "Multiplier",
    "NegativeHead",
    "RetrievalResult",
    "RetrievalSection",
    "Score",
    "SpeedCase",
    "SpeedResult",
    "SpeedSection",
    "TaskScore",
    "TasksResult",
    "TasksSection",
    "TextUse",
    "Verdict",
    "Word",
    "perplexity",
]

RESULT_SCHEMA = 2

# The section of any measure.
if TYPE_CHECKING:
    Section: TypeAlias = Any
else:
    Section = Annotated[
        reduce(or_, dict.fromkeys(kind.result for kind in MEASURES.values())), Field(discriminator="kind")
    ]


@dataclass(frozen=True)
class EvaluationResult(ShownAsTable):
    """What a suite measured of some models, beside their base where one was given.

    Attributes:
        suite: its name.
        models: the evaluated models.
        against: their base.
        verdicts: one for each model; empty without a base.
        sections: one for each part, in the order of the suite.
        interval: how the intervals were computed.
        environment: versions of the software.
        warnings: what a reader must know.
        trainings: training runs of each model, by its fingerprint, each
            ``{"label": str, "rows": [{"step", "loss", ...}]}``.
    """

    suite: str
    models: tuple[ModelUse, ...]
    against: ModelUse | None
    verdicts: tuple[Verdict, ...]
    sections: tuple[Section, ...]
    interval: Interval
    environment: dict[str, str]
    warnings: tuple[str, ...]
    trainings: dict[str, list[dict[str, Any]]]

    def section(self, kind: str) -> Any:
        """The first section of a kind.

        Raises:
            KeyError: there is no such section.
        """
        for section in self.sections:
            if section.kind == kind:
                return section
        raise KeyError(kind)

    def to_table(self) -> ResultTable:
        """One row for each measured number; the notes are the findings and what a reader must know."""
        names = [use.name for use in (*self.models, *([self.against] if self.against is not None else []))]
        findings = [
            f"{names[verdict.model]}: {verdict.word}. "
            + " ".join(f"{finding.measure}: {finding.sentence}" for finding in verdict.findings)
            for verdict in self.verdicts
        ]
        rows = [row for section in self.sections for row in section.rows()]
        return ResultTable(
            title=f"{', '.join(use.name for use in self.models)}"
            + (f" against {self.against.name}" if self.against is not None else ""),
            columns=("what", "model", "value", "base", "difference", "low", "high", "verdict"),
            rows=tuple((row.what, names[row.model], *row[2:]) for row in rows),
            notes=(*(findings or ["no base was given, so nothing is compared"]), *self.warnings),
        )

    def plot(self) -> Pictures:
        """All pictures of the report. A notebook shows them; ``save(folder)`` writes them."""
        from surgery.reporting.drawings import draw_all
        from surgery.reporting.pictures import pictures_of

        histories = [self.trainings.get(use.fingerprint, []) for use in self.models]
        return pictures_of(draw_all(self.to_dict(), histories))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: dicts, lists, strings and finite numbers, with the schema version."""
        return {"result_schema": RESULT_SCHEMA, **_adapter().dump_python(self, mode="json")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EvaluationResult:
        """The inverse of :meth:`to_dict`; other keys (``schema``, ``kind``, ``provenance``) are ignored.

        Raises:
            UsageError: the data are not an evaluation result, or have another schema.
        """
        version = data.get("result_schema")
        if version != RESULT_SCHEMA:
            raise UsageError(
                f"result_schema is {json.dumps(version)}; this version reads {RESULT_SCHEMA}",
                hint="Pass an evaluation.json, or install the version of `surgery` that wrote it.",
            )
        try:
            return _adapter().validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"not an evaluation result: {where}: {first['msg']}") from error


@cache
def _adapter() -> TypeAdapter[EvaluationResult]:
    return TypeAdapter(EvaluationResult)
