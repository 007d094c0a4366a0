"""The pictures: functions of plain data and a theme that return a matplotlib figure."""

from surgery.reporting.figures.attention import attention_by_n, attention_maps, rejected_maps
from surgery.reporting.figures.learned import multiplier_curves, parameter_map
from surgery.reporting.figures.loss import loss_by_position, paired_difference
from surgery.reporting.figures.retrieval import retrieval_maps
from surgery.reporting.figures.training import has_training_losses, training_curves

__all__ = [
    "attention_by_n",
    "attention_maps",
    "has_training_losses",
    "loss_by_position",
    "multiplier_curves",
    "paired_difference",
    "parameter_map",
    "rejected_maps",
    "retrieval_maps",
    "training_curves",
]
