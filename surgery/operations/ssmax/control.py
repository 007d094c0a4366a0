"""SSMax with constants in place of its learned scale: one temperature per head, the same at every length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from surgery.operations.ssmax.options import GAIN


def constant_multiplier(module: Any, options: Mapping[str, Any]) -> Any:
    """The module with m(n) = b, where b starts at 1: the form ``bias`` with s = 0. A gain of outputs stays.

    Args:
        module: the SSMax module of a loaded model.
        options: of the operation, from config.json.
    """
    device = next(module.parameters()).device
    start = {"scale": 0.0, "bias": 1.0, **GAIN}
    own = type(module)({**options, "form": "bias", "start": start}, module.num_heads).to(device)
    # A buffer, so that nothing can train it.
    zeros = torch.zeros_like(own.scale.data)
    del own.scale
    own.register_buffer("scale", zeros, persistent=False)
    return own
