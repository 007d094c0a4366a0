"""Statistics of the attention weights by layer, head and n."""

from surgery.evaluation.attention.options import AttentionPart
from surgery.evaluation.attention.result import AttentionSection
from surgery.evaluation.attention.section import attention_section
from surgery.evaluation.measure import MeasureKind
from surgery.lazy import later

ATTENTION = MeasureKind(
    "attention", AttentionPart, later(f"{__name__}.measure.AttentionMeasure"), AttentionSection, attention_section
)
