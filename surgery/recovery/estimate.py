"""Estimate of time and memory of a run, from one measured step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CostEstimate:
    """Time and memory on this device, computed from one measured step of each stage at full length.

    Attributes:
        device: the device of the measurement.
        step_seconds: time of a step, by stage.
        training_seconds: time of all steps.
        held_out_seconds: time of all measurements of the held-out text, before, during and after the training.
        control_seconds: time of the controls; each takes as long as the run.
        peak_bytes: largest memory in use, of the device, or on a CPU of the process.
    """

    device: str
    step_seconds: tuple[float, ...]
    training_seconds: float
    held_out_seconds: float
    control_seconds: float
    peak_bytes: int

    @property
    def total_seconds(self) -> float:
        """Time of the whole run."""
        return self.training_seconds + self.held_out_seconds + self.control_seconds
