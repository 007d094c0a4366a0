"""Everything that was measured, to JSON and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from surgery.errors import UsageError
from surgery.evaluation.results.attention import AttentionSection
from surgery.evaluation.results.estimates import Interval, Verdict
from surgery.evaluation.results.loss import LossSection
from surgery.evaluation.results.models import ModelUse
from surgery.evaluation.results.retrieval import RetrievalSection
from surgery.evaluation.results.speed import SpeedSection
from surgery.evaluation.results.tasks import TasksSection

RESULT_SCHEMA = 2


Section = Annotated[
    LossSection | RetrievalSection | AttentionSection | TasksSection | SpeedSection, Field(discriminator="kind")
]


@dataclass(frozen=True)
class EvaluationResult:
    """What a suite measured of some models, beside their base where one was given.

    Attributes:
        suite: its name.
        models: those that were evaluated.
        against: their base.
        verdicts: one for each model; none without a base.
        sections: what was measured, in the order of the suite.
        interval: how the intervals were made.
        environment: versions of what measured.
        warnings: what a reader must know.
        trainings: training runs that each model went through, by its fingerprint, each
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
            KeyError: there is none.
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
            UsageError: the data are no evaluation result, or one of a newer schema.
        """
        version = data.get("result_schema")
        if version != RESULT_SCHEMA:
            raise UsageError(
                f"result_schema is {json.dumps(version)}; this version reads {RESULT_SCHEMA}.",
                hint="Give an evaluation.json, or install the version of `surgery` that wrote it.",
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
