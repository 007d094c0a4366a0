"""Retrieval: does the model complete a probe, by length and depth?"""

from surgery.evaluation.measure import MeasureKind
from surgery.evaluation.retrieval.options import RetrievalPart
from surgery.evaluation.retrieval.result import RetrievalSection
from surgery.evaluation.retrieval.section import retrieval_section
from surgery.lazy import later

RETRIEVAL = MeasureKind(
    "retrieval", RetrievalPart, later(f"{__name__}.measure.RetrievalMeasure"), RetrievalSection, retrieval_section
)
