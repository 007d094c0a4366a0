"""SSMax with constants in place of its learned scale: one temperature per head, whatever the length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def constant_multiplier(module: Any, options: Mapping[str, Any]) -> Any:
    """The module with m(n) = b, b = 1 at first: the form ``bias`` with s = 0.

    Args:
        module: the SSMax module of a loaded model.
        options: of the operation, from config.json.
    """
    device = next(module.parameters()).device
    own = type(module)({**options, "form": "bias", "start": {"scale": 0.0, "bias": 1.0}}, module.num_heads).to(device)
    # A buffer rather than a parameter: nothing can train it, whoever switches gradients on.
    zeros = torch.zeros_like(own.scale.data)
    del own.scale
    own.register_buffer("scale", zeros, persistent=False)
    return own
