"""Errors of a training."""

from __future__ import annotations

from surgery.errors import ExitCode, SurgeryError


class DivergedError(SurgeryError):
    """The loss or the gradient is no longer a finite number, or the loss rose for too long (exit code 1)."""


class TrainingStoppedError(SurgeryError):
    """Ctrl-C or SIGTERM: the step was finished and a checkpoint was saved (exit code 130)."""

    exit_code = ExitCode.INTERRUPTED
