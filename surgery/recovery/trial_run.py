"""Estimate of time and memory from a trial step of each stage, for ``--dry-run --measure``."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

from surgery.recovery.estimate import CostEstimate
from surgery.recovery.model_run import ModelRun, RunSetup
from surgery.training.callbacks import StopCallback
from surgery.training.folder import TrainingFolder
from surgery.training.progress import Progress
from surgery.training.trial import trial


def estimate_run(setup: RunSetup) -> CostEstimate:
    """Load the model, run a trial step of each stage, and discard both.

    Raises:
        SurgeryError: no gradient, a loss that is not finite, or too little memory, as at the start of a run.
    """
    with tempfile.TemporaryDirectory() as place:
        setup = setup.converted(Path(place) / "converted")
        run = ModelRun(setup, "operated", TrainingFolder(Path(place) / "trial"), StopCallback())
        numbers = run.prepare()
        seconds: list[float] = []
        for number in numbers:
            trainer = run.training.trainer(number, Progress(0, 0, 0.0))
            trial(trainer)  # the first one also warms up
            started = time.perf_counter()
            trial(trainer)
            seconds.append((time.perf_counter() - started) * run.stages[number].batch.accumulation)
        once = trainer.held_out_seconds()
        device = trainer.args.device
    plan = setup.plan
    steps = [stage.steps for stage in plan.stages] or [plan.steps]
    training = sum(count * each for count, each in zip(steps, seconds, strict=True))
    every = setup.recipe.evaluation.every
    held_out = once * (3 + (plan.steps // every if every else 0))
    return CostEstimate(
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
