"""Short tasks of lm-evaluation-harness."""

from surgery.evaluation.measure import MeasureKind
from surgery.evaluation.tasks.measure import TasksMeasure
from surgery.evaluation.tasks.options import TasksPart
from surgery.evaluation.tasks.result import TasksSection
from surgery.evaluation.tasks.section import tasks_section

TASKS = MeasureKind("tasks", TasksPart, TasksMeasure, TasksSection, tasks_section)
