"""What the heads of a Multiscreen layer have learned, and which of them look about equally far back."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

PADDING = -(2.0**30)  # the document of padding
_LEAST_POWER = 5  # windows of at most 32 tokens are one group: more groups cost more than they spare


class Heads(NamedTuple):
    """What each head has learned, each (heads,) in float32: the inverse acceptance width and the window in tokens."""

    tightness: Tensor
    window: Tensor


class Group(NamedTuple):
    """Heads that look about equally far back.

    Attributes:
        heads: numbers of the heads.
        reach: how many keys back the widest of them looks, the query's own included; None: all keys.
        infinite: whether all of them have infinite windows.
    """

    heads: list[int]
    reach: int | None
    infinite: bool

    def rows(self, device: torch.device) -> slice | Tensor:
        """The heads as an index; neighbours are a slice, which needs no copy."""
        first, last = self.heads[0], self.heads[-1]
        if self.heads == list(range(first, last + 1)):
            return slice(first, last + 1)
        return torch.tensor(self.heads, device=device)

    def alone(self) -> Group:
        """The group among its own heads."""
        return self._replace(heads=list(range(len(self.heads))))


def group_heads(window: Tensor, keys: int | None = None) -> list[Group]:
    """The heads by window, in powers of two.

    Args:
        window: (heads,), in tokens; infinite ones look at all keys.
        keys: number of keys, if it is known: a longer window looks at all keys.
    """
    windows = window.tolist()  # waits for the device
    members: dict[int | None, list[int]] = {}
    for head, length in enumerate(windows):
        near = math.isfinite(length) and (keys is None or length < keys)
        power = max(math.ceil(math.log2(length)), _LEAST_POWER) if near else None
        members.setdefault(power, []).append(head)
    return [
        Group(
            heads,
            None if power is None else math.ceil(max(windows[head] for head in heads)),
            all(math.isinf(windows[head]) for head in heads),
        )
        for power, heads in members.items()
    ]


def softmask(distance: Tensor, window: Tensor) -> Tensor:
    """m = (cos(pi d / w) + 1) / 2 for 0 <= d < w, else 0.

    Args:
        distance: d, how many keys a key stands before a query.
        window: w, of a shape that goes with that of ``distance``.
    """
    seen = (distance >= 0) & (distance < window)
    return torch.where(seen, (torch.cos(math.pi * distance / window) + 1) / 2, 0.0)
