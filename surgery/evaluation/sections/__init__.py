"""Sections of a result: each from the finished parts of some models, and of their base."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from surgery.evaluation.sections.attention import attention_section
from surgery.evaluation.sections.loss import loss_section
from surgery.evaluation.sections.retrieval import retrieval_section
from surgery.evaluation.sections.speed import speed_section
from surgery.evaluation.sections.tasks import tasks_section

# (number and measurement of each model, that of the base, how many models there are) to a section.
Assemble = Callable[[Sequence[tuple[int, Mapping[str, Any]]], Mapping[str, Any] | None, int], Any]

SECTIONS: dict[str, Assemble] = {
    "loss": loss_section,
    "sliding": loss_section,
    "retrieval": retrieval_section,
    "attention": attention_section,
    "tasks": tasks_section,
    "speed": speed_section,
}

__all__ = ["SECTIONS"]
