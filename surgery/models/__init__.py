"""Models made from random weights by `surgery new`.

Importing this package imports no torch. To add an architecture, write a folder and add the architecture to
``ARCHITECTURES`` in `catalogue.py`; `base.py` explains how.
"""

from surgery.models.base import Architecture, ArchitectureOptions, Vocabulary
from surgery.models.catalogue import ARCHITECTURES
from surgery.models.creation import NewModel, NewPlan, new, plan_new

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "ArchitectureOptions",
    "NewModel",
    "NewPlan",
    "Vocabulary",
    "new",
    "plan_new",
]
