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
from surgery.evaluation.loss.result import Bucket, CurvePoint, LossResult, LossSection
from surgery.evaluation.measures import MEASURES
from surgery.evaluation.models import ModelUse
from surgery.evaluation.retrieval.result import Grid, RetrievalResult, RetrievalSection, Score
from surgery.evaluation.speed.result import MemoryUse, SpeedCase, SpeedResult, SpeedSection
from surgery.evaluation.tasks.result import TaskScore, TasksResult, TasksSection
from surgery.operations.learned_numbers import LearnedNumbers, Multiplier, NegativeHead

__all__ = [
    "AttentionAt",
    "AttentionResult",
    "AttentionSection",
    "Bucket",
    "ByHead",
    "CurvePoint",
    "DataUse",
    "Estimate",
    "EvaluationResult",
    "Finding",
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
class EvaluationResult:
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
