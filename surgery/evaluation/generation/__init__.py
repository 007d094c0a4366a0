"""Samples of generation: how each model continues the same prompts."""

from surgery.evaluation.generation.options import GenerationPart
from surgery.evaluation.generation.result import GenerationSection
from surgery.evaluation.generation.section import generation_section
from surgery.evaluation.measure import MeasureKind
from surgery.lazy import later

GENERATION = MeasureKind(
    "generation", GenerationPart, later(f"{__name__}.measure.GenerationMeasure"), GenerationSection, generation_section
)
