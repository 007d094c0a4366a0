"""Samples of generation: how each model continues the same prompts."""

from surgery.evaluation.generation.measure import GenerationMeasure
from surgery.evaluation.generation.options import GenerationPart
from surgery.evaluation.generation.result import GenerationSection
from surgery.evaluation.generation.section import generation_section
from surgery.evaluation.measure import MeasureKind

GENERATION = MeasureKind("generation", GenerationPart, GenerationMeasure, GenerationSection, generation_section)
