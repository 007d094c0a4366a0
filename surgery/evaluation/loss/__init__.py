"""The loss of each next token: by the number of tokens seen, and over whole documents by a sliding window."""

from surgery.evaluation.loss.measure import LossMeasure, SlidingMeasure
from surgery.evaluation.loss.options import LossPart, SlidingPart
from surgery.evaluation.loss.result import LossSection
from surgery.evaluation.loss.section import loss_section, loss_warnings
from surgery.evaluation.measure import MeasureKind

LOSS = MeasureKind("loss", LossPart, LossMeasure, LossSection, loss_section, loss_warnings)
SLIDING = MeasureKind("sliding", SlidingPart, SlidingMeasure, LossSection, loss_section, loss_warnings)
