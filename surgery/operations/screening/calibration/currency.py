"""What a calibration spends the allowed loss on: the bytes of the key-value cache, or the time of attention."""

from __future__ import annotations

import math
from collections.abc import Callable

from surgery.anatomy import Anatomy
from surgery.operations.screening import ScreeningOptions
from surgery.operations.screening.calibration_settings import CalibrationSettings
from surgery.operations.screening.savings import kept_keys

# What one key-value group saves with a window, as a share of everything in the screened layers, by the number of the
# layer and the window in keys.
Currency = Callable[[int, float], float]


def currency(settings: CalibrationSettings, anatomy: Anatomy, screening: ScreeningOptions, context: int) -> Currency:
    """The currency of ``settings.save``, memory or time, at a context of so many tokens."""
    layers = [anatomy.layers[int(layer)] for layer in screening.layers]
    if settings.save == "memory":
        everything = sum(layer.kv_heads * layer.head_dim for layer in layers)

        def memory(layer: int, window: float) -> float:
            kept = 1.0 if math.isinf(window) else kept_keys(window, context, screening.sinks) / context
            return (1 - kept) * anatomy.layers[layer].head_dim / everything

        return memory
    from surgery.operations.screening.cost import read_costs

    costs = read_costs()

    def time(layer: int, window: float) -> float:
        saved = 1 - costs.share(window, context, screening.sinks)
        return saved / anatomy.layers[layer].kv_heads / len(layers)

    return time
