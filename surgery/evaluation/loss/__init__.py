"""The loss of each next token: by the number of tokens seen, and over whole documents by a sliding window."""

from surgery.evaluation.loss.options import LossPart, SlidingPart
from surgery.evaluation.loss.result import LossSection
from surgery.evaluation.loss.section import loss_section, loss_warnings
from surgery.evaluation.measure import MeasureKind
from surgery.lazy import later

LOSS = MeasureKind("loss", LossPart, later(f"{__name__}.measure.LossMeasure"), LossSection, loss_section, loss_warnings)
SLIDING = MeasureKind(
    "sliding", SlidingPart, later(f"{__name__}.measure.SlidingMeasure"), LossSection, loss_section, loss_warnings
)
