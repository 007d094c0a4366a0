"""Choose thresholds and windows on texts, without training.

``calibrate`` observes passages (a forward and a backward pass, on a sample of queries), chooses a threshold and a
window for every head, and measures the loss of held-out passages, until it rises by no more than allowed. ``sweep``
measures several choices from one observation: the loss against the share of rejected keys.
"""

from surgery.operations.screening.calibration.calibration import calibrate
from surgery.operations.screening.calibration.loss_sweep import Sweep, sweep
from surgery.operations.screening.calibration.results import Calibration, read_calibration
from surgery.operations.screening.calibration_settings import CalibrationSettings

__all__ = ["Calibration", "CalibrationSettings", "Sweep", "calibrate", "read_calibration", "sweep"]
