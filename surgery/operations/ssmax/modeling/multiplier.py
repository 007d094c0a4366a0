# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""SSMax: a multiplier of the query that grows with ln n. softmax(m q.k) is SSMax exactly (arXiv 2501.19399).

Beside it, if the options ask for it, a gain of each head's output.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from surgery.runtime.operation import OperationModule

# Learned parameters of each form's multiplier.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "paper": ("scale",),
    "bias": ("scale", "bias"),
    "anchored": ("scale",),
    "logn": (),
    "constant": ("bias",),
    "none": (),
}


def multiplier(
    form: str, log_n: torch.Tensor, log_reference: float, scale: Any = None, bias: Any = None
) -> torch.Tensor:
    """m(n), by which SSMax multiplies the query.

    ======== ============================= =========================
    form     m(n)                          learned per head
    ======== ============================= =========================
    paper    s ln n                        scale s
    bias     s ln n + b                    scale s, bias b
    anchored 1 + s (ln n - ln N)           scale s
    logn     max(1, ln n / ln N)           nothing
    constant b                             bias b
    none     1                             nothing
    ======== ============================= =========================

    Args:
        form: one of the six.
        log_n: ln n, of a shape that broadcasts with those of the parameters.
        log_reference: ln N, of the reference length N.
        scale, bias: the parameters of the form, tensors.
    """
    if form == "logn":
        return (log_n / log_reference).clamp(min=1.0)
    if form == "paper":
        return scale * log_n
    if form == "bias":
        return scale * log_n + bias
    if form == "anchored":
        return scale * (log_n - log_reference) + 1.0
    if form == "constant":
        return bias + torch.zeros_like(log_n)
    if form == "none":
        return torch.ones_like(log_n)
    raise ValueError(f"SSMax has no form {form!r}")


class SSMax(OperationModule, name="ssmax"):
    """Query multiplier per head: softmax(m_h(n) z) in place of softmax(z); see :func:`multiplier`.

    With ``outputs: gain`` a head's output is multiplied by a learned g_h. Heads that were not chosen have no parameter;
    their multiplier and their gain are exactly 1.
    """

    scale: nn.Parameter
    bias: nn.Parameter
    gain: nn.Parameter

    def __init__(self, options: dict[str, Any], num_heads: int) -> None:
        super().__init__(options, num_heads)
        self.form: str = options["form"]
        self.log_reference = math.log(options["reference_length"] or 1)
        if self.form not in PARAMETERS:
            raise ValueError(f"ssmax: unknown form {self.form!r}")
        # Checkpoints from before there were gains do not have the key.
        outputs = options.get("outputs", "unchanged")
        if outputs not in ("unchanged", "gain"):
            raise ValueError(f"ssmax: unknown outputs {outputs!r}")
        self.scales_output = outputs == "gain"
        self._add_parameters(*PARAMETERS[self.form], *(("gain",) if self.scales_output else ()))

    def scale_query(self, query: torch.Tensor, visible_keys: torch.Tensor) -> torch.Tensor:
        """The query times m(n)."""
        return (query * self(visible_keys)).to(query.dtype)

    def scale_output(self, output: torch.Tensor) -> torch.Tensor:
        """The output times g."""
        gains = self.gain.float()
        if self.heads is not None:
            everyone = gains.new_ones(self.num_heads)
            gains = everyone.index_copy(0, torch.tensor(self.heads, device=gains.device), gains)
        return (output * gains.unsqueeze(-1)).to(output.dtype)

    def forward(self, visible_keys: torch.Tensor) -> torch.Tensor:
        """Multiplier of the query.

        Args:
            visible_keys: n in this layer, ``(batch or 1, queries)``.

        Returns:
            ``(batch or 1, heads, queries, 1)``, float32.
        """
        # Views rather than indexing: in decoding, the cost of these few numbers is that of the calls.
        log_n = visible_keys.log().unsqueeze(1).unsqueeze(-1)
        values = {name: getattr(self, name).float().view(-1, 1, 1) for name in PARAMETERS[self.form]}
        found = multiplier(self.form, log_n, self.log_reference, **values)
        if not values:
            found = found.expand(-1, self.num_heads if self.heads is None else len(self.heads), -1, -1)
        if self.heads is not None:
            everyone = found.new_ones(found.shape[0], self.num_heads, found.shape[2], 1)
            found = everyone.index_copy(1, torch.tensor(self.heads, device=found.device), found)
        return found

    def extra_repr(self) -> str:
        """What print(model) shows."""
        gain = ", with a gain of the output" if self.scales_output else ""
        return f"form={self.form}{gain}, heads={self.num_heads if self.heads is None else self.heads}"
