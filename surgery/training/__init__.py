"""The training engine: any causal language model, from scratch too, resumed to the same bits.

It knows no operation. `train` takes a model, rows from `read_data` and `TrainingOptions`; objectives are in
`objectives`, and callers add loss terms, schedules and numbers through `extension`. Nothing here imports torch until a
training begins.
"""

from surgery.training.api import train
from surgery.training.dataset import TrainingData, read_data
from surgery.training.errors import DivergedError, TrainingStoppedError
from surgery.training.folder import TrainingFolder
from surgery.training.options import TrainingOptions
from surgery.training.progress import Progress
from surgery.training.text_options import Data

__all__ = [
    "Data",
    "DivergedError",
    "Progress",
    "TrainingData",
    "TrainingFolder",
    "TrainingOptions",
    "TrainingStoppedError",
    "read_data",
    "train",
]
