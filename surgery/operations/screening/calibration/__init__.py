"""Choosing thresholds and windows without training: text through the model, what each head could reject, and the guard.

``calibrate`` observes passages (forward and back, on a sample of queries), chooses for every head under one price for
damage, and tries the choice on passages that were held out until the loss there rises by no more than is allowed.
``sweep`` measures several choices from the same evidence: the loss against the share of keys that is rejected.
"""

from surgery.operations.screening.calibration.calibration import CalibrationSettings, calibrate
from surgery.operations.screening.calibration.loss_sweep import Sweep, sweep
from surgery.operations.screening.calibration.results import Calibration, read_calibration

__all__ = ["Calibration", "CalibrationSettings", "Sweep", "calibrate", "read_calibration", "sweep"]
