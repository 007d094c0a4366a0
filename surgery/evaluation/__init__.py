"""Measurements of a model that return plain data: loss by position, paired with its base, and learned numbers."""

from surgery.evaluation.comparison import evaluate
from surgery.evaluation.history import training_history
from surgery.evaluation.results import EvaluationResult

__all__ = ["EvaluationResult", "evaluate", "training_history"]
