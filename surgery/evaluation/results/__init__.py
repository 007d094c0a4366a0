"""What an evaluation returns: frozen values of plain numbers, strings and tuples, that go to JSON and back."""

from surgery.evaluation.results.attention import AttentionAt, AttentionResult, AttentionSection, ByHead
from surgery.evaluation.results.estimates import Estimate, Finding, Interval, Verdict, Word, perplexity
from surgery.evaluation.results.evaluation import EvaluationResult
from surgery.evaluation.results.loss import Bucket, CurvePoint, DataUse, LossResult, LossSection, TextUse
from surgery.evaluation.results.models import LearnedNumbers, ModelUse, Multiplier, NegativeHead
from surgery.evaluation.results.retrieval import Grid, RetrievalResult, RetrievalSection, Score
from surgery.evaluation.results.speed import MemoryUse, SpeedCase, SpeedResult, SpeedSection
from surgery.evaluation.results.tasks import TaskScore, TasksResult, TasksSection

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
