"""Short tasks of lm-evaluation-harness."""

from surgery.evaluation.measure import MeasureKind
from surgery.evaluation.tasks.options import TasksPart
from surgery.evaluation.tasks.result import TasksSection
from surgery.evaluation.tasks.section import tasks_section
from surgery.lazy import later

TASKS = MeasureKind("tasks", TasksPart, later(f"{__name__}.measure.TasksMeasure"), TasksSection, tasks_section)
