"""Choose the numbers of SSMax on texts, without a training run.

Facts are hidden in the texts, and each is asked for. ``gradients`` measures how the answers and the text change with
the numbers of each head, ``step`` computes the change that helps the answers most for its loss on text, and ``guard``
bounds that loss on held-out text.
"""

from surgery.operations.ssmax.calibration.calibration import calibrate
from surgery.operations.ssmax.calibration.results import SSMaxCalibration, read_calibration
from surgery.operations.ssmax.calibration_settings import SSMaxCalibrationSettings

__all__ = ["SSMaxCalibration", "SSMaxCalibrationSettings", "calibrate", "read_calibration"]
