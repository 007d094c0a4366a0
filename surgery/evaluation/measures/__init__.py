"""The kinds of measurement: each turns a part of a suite into units, and runs a unit on a model."""

from typing import Any

from surgery.evaluation.measures.attention import AttentionMeasure
from surgery.evaluation.measures.base import Measure, Plan, Subject, Unit
from surgery.evaluation.measures.loss import LossMeasure, SlidingMeasure
from surgery.evaluation.measures.retrieval import RetrievalMeasure
from surgery.evaluation.measures.speed import measure_speed
from surgery.evaluation.measures.tasks import TasksMeasure

MEASURES: dict[str, Any] = {
    "loss": LossMeasure,
    "sliding": SlidingMeasure,
    "retrieval": RetrievalMeasure,
    "attention": AttentionMeasure,
    "tasks": TasksMeasure,
}

__all__ = [
    "MEASURES",
    "AttentionMeasure",
    "LossMeasure",
    "Measure",
    "Plan",
    "RetrievalMeasure",
    "SlidingMeasure",
    "Subject",
    "TasksMeasure",
    "Unit",
    "measure_speed",
]
