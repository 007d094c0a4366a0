"""Time and memory of a run from one step of it: what ``--dry-run --measure`` adds to the plan."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.recovery.state import Progress, TrainingFolder

if TYPE_CHECKING:
    from surgery.recovery.attempt import Setup


@dataclass(frozen=True)
class Estimate:
    """Measured on this device, alone or not: seconds of one step of each stage at full length, and what follows.

    Attributes:
        device: where.
        step_seconds: of each stage.
        training_seconds: of all steps.
        held_out_seconds: of all measurements of the held-out text, before, during and after.
        control_seconds: of the controls, as long as the run each.
        peak_bytes: most memory that was in use: the device's, or on a CPU the whole process's.
    """

    device: str
    step_seconds: tuple[float, ...]
    training_seconds: float
    held_out_seconds: float
    control_seconds: float
    peak_bytes: int

    @property
    def total_seconds(self) -> float:
        """All of it."""
        return self.training_seconds + self.held_out_seconds + self.control_seconds


def estimate(setup: Setup) -> Estimate:
    """Load the model, take a trial step of each stage, and throw both away.

    Raises:
        SurgeryError: as a run does in its first minute: no gradient, a loss that is not finite, too little memory.
    """
    import torch

    from surgery.recovery.attempt import Attempt
    from surgery.recovery.trainer import StopCallback

    with tempfile.TemporaryDirectory() as place:
        setup = setup.converted(Path(place) / "converted")
        attempt = Attempt(setup, "operated", TrainingFolder(Path(place) / "trial"), StopCallback())
        numbers = attempt.prepare()
        seconds: list[float] = []
        for number in numbers:
            trainer = attempt.trainer(number, Progress(0, 0, 0.0))
            length = attempt.stages[number].data.sequence_length
            trainer.trial(length)  # the first one also warms up
            started = time.perf_counter()
            trainer.trial(length)
            seconds.append((time.perf_counter() - started) * attempt.stages[number].batch.accumulation)
        once = trainer.held_out_seconds()
        device = trainer.args.device
    plan = setup.plan
    steps = [stage.steps for stage in plan.stages] or [plan.steps]
    training = sum(count * each for count, each in zip(steps, seconds, strict=True))
    every = setup.recipe.evaluation.every
    held_out = once * (3 + (plan.steps // every if every else 0))
    return Estimate(
        device=str(device),
        step_seconds=tuple(round(each, 3) for each in seconds),
        training_seconds=round(training, 1),
        held_out_seconds=round(held_out, 1),
        control_seconds=round(len(plan.controls) * (training + once), 1),
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_peak(),
    )


def _resident_peak() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
