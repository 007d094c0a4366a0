"""Rates of prefill and decoding, and memory, of a model and its base."""

from surgery.evaluation.measure import MeasureKind
from surgery.evaluation.speed.options import SpeedPart
from surgery.evaluation.speed.result import SpeedSection
from surgery.evaluation.speed.section import speed_section
from surgery.lazy import later

SPEED = MeasureKind("speed", SpeedPart, later(f"{__name__}.measure.SpeedMeasure"), SpeedSection, speed_section)
