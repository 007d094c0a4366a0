"""Retrieval: does the model complete a probe, by length and depth?"""

from surgery.evaluation.measure import MeasureKind
from surgery.evaluation.retrieval.measure import RetrievalMeasure
from surgery.evaluation.retrieval.options import RetrievalPart
from surgery.evaluation.retrieval.result import RetrievalSection
from surgery.evaluation.retrieval.section import retrieval_section

RETRIEVAL = MeasureKind("retrieval", RetrievalPart, RetrievalMeasure, RetrievalSection, retrieval_section)
