"""Time and memory of a run, measured from one step of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CostEstimate:
    """Time and memory on this device, computed from one measured step of each stage at full length.

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
