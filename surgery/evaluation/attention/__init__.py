"""Statistics of the attention weights by layer, head and n."""

from surgery.evaluation.attention.measure import AttentionMeasure
from surgery.evaluation.attention.options import AttentionPart
from surgery.evaluation.attention.result import AttentionSection
from surgery.evaluation.attention.section import attention_section
from surgery.evaluation.measure import MeasureKind

ATTENTION = MeasureKind("attention", AttentionPart, AttentionMeasure, AttentionSection, attention_section)
