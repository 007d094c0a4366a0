"""Rates of prefill and decoding, and memory, of a model and its base."""

from surgery.evaluation.measure import MeasureKind
from surgery.evaluation.speed.measure import SpeedMeasure
from surgery.evaluation.speed.options import SpeedPart
from surgery.evaluation.speed.result import SpeedSection
from surgery.evaluation.speed.section import speed_section

SPEED = MeasureKind("speed", SpeedPart, SpeedMeasure, SpeedSection, speed_section)
