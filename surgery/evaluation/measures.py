"""The registry of measures: suites, sessions and results are made from it. A new measure is one folder and one row."""

from types import MappingProxyType

from surgery.evaluation.attention import ATTENTION
from surgery.evaluation.generation import GENERATION
from surgery.evaluation.loss import LOSS, SLIDING
from surgery.evaluation.measure import MeasureKind
from surgery.evaluation.retrieval import RETRIEVAL
from surgery.evaluation.speed import SPEED
from surgery.evaluation.tasks import TASKS

# In the order in which a report shows them.
MEASURES: MappingProxyType[str, MeasureKind] = MappingProxyType(
    {kind.name: kind for kind in (LOSS, SLIDING, RETRIEVAL, TASKS, GENERATION, ATTENTION, SPEED)}
)
