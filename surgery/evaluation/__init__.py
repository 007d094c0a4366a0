"""Measurements of a model that return plain data: loss by position, retrieval, attention, paired with its base."""

from surgery.evaluation.api import evaluate
from surgery.evaluation.assembly import assemble
from surgery.evaluation.history import training_history
from surgery.evaluation.results import EvaluationResult
from surgery.evaluation.suite import Suite, SuiteError, read_suite

__all__ = ["EvaluationResult", "Suite", "SuiteError", "assemble", "evaluate", "read_suite", "training_history"]
