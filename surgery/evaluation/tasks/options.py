"""What a suite can set of the short tasks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from surgery.evaluation.part import PartOptions


class TasksPart(PartOptions):
    """Short tasks of lm-evaluation-harness (extra ``eval``)."""

    kind: Literal["tasks"]
    names: list[str] = Field(min_length=1, description="Names of the tasks in lm-eval.")
    definitions: str | None = Field(default=None, description="Folder with your own task definitions.")
    limit: PositiveInt | None = Field(default=None, description="Examples of each task; default: all.")
    shots: int | None = Field(default=None, ge=0, description="Examples in the prompt; default: set by the task.")
