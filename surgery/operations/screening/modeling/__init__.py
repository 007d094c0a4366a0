"""The code that travels in a checkpoint with screening."""

from surgery.operations.screening.modeling.acceptance import Acceptance, Observation
from surgery.operations.screening.modeling.attention import screened_attention
from surgery.operations.screening.modeling.bands import attend_in_bands
from surgery.operations.screening.modeling.blocks import Block
from surgery.operations.screening.modeling.cache import WindowedCache, WindowedLayer
from surgery.operations.screening.modeling.flex import attend_in_flex
from surgery.operations.screening.modeling.gradients import renormalised
from surgery.operations.screening.modeling.module import Screening

__all__ = [
    "Acceptance",
    "Block",
    "Observation",
    "Screening",
    "WindowedCache",
    "WindowedLayer",
    "attend_in_bands",
    "attend_in_flex",
    "renormalised",
    "screened_attention",
]
