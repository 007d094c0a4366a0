"""The sum over accepted keys of a Multiscreen head, without a (queries, keys) matrix.

    alpha = max(1 - (1 - q.k) / r, 0)^2    m = (cos(pi d / w) + 1) / 2 for 0 <= d < w, else 0    h = sum alpha m v

Nothing is normalized over the keys, so blocks of queries are independent of each other. Heads with finite windows take
blocks of queries and the keys within the window; other heads take blocks of queries and all keys before them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_BLOCK = 128
PADDING = -(2.0**30)  # the document of padding


class Heads(NamedTuple):
    """What each head has learned, each (heads,) in float32: the inverse acceptance width and the window in tokens."""

    tightness: Tensor
    window: Tensor

    def select(self, heads: Tensor) -> Heads:
        """Those of some heads."""
        return Heads(self.tightness[heads], self.window[heads])


def accepted_sum(
    query: Tensor, key: Tensor, value: Tensor, document: Tensor, key_document: Tensor, heads: Heads
) -> Tensor:
    """The sum of the values, each times its relevance.

    Args:
        query: (batch, heads, queries, key_dim), unit length, position applied; the queries are the last of the keys.
        key: (batch, heads, keys, key_dim), alike.
        value: (batch, heads, keys, value_dim).
        document: (batch, queries), the document of each query, as a number, or ``PADDING``.
        key_document: (batch, keys), alike; a query sees the keys of its own document.
        heads: what each head has learned.

    Returns:
        (batch, heads, queries, value_dim); 0 where a query accepts no key.
    """
    if torch.compiler.is_compiling():  # windows are numbers on the device; reading them would break the graph
        return _all_before(query, key, value, document, key_document, heads)
    keys = key.shape[2]
    groups: dict[int, list[int]] = {}
    for head, window in enumerate(heads.window.tolist()):
        reach = 2 ** max(math.ceil(math.log2(window)), 5) if window < keys else keys
        groups.setdefault(min(reach, keys), []).append(head)
    if len(groups) == 1:
        (reach,) = groups
        return _one_group(query, key, value, document, key_document, heads, reach)
    sums, order = [], []
    for reach, members in groups.items():
        chosen = torch.tensor(members, device=query.device)
        some = query[:, chosen], key[:, chosen], value[:, chosen]
        sums.append(_one_group(*some, document, key_document, heads.select(chosen), reach))
        order += members
    back = torch.tensor(order, device=query.device).argsort()
    return torch.cat(sums, dim=1)[:, back]


def _one_group(
    query: Tensor, key: Tensor, value: Tensor, document: Tensor, key_document: Tensor, heads: Heads, reach: int
) -> Tensor:
    if reach >= key.shape[2]:
        return _all_before(query, key, value, document, key_document, heads)
    return _banded(query, key, value, document, key_document, heads, reach)


def _all_before(
    query: Tensor, key: Tensor, value: Tensor, document: Tensor, key_document: Tensor, heads: Heads
) -> Tensor:
    """Blocks of queries against all keys before them; in training, the backward pass computes each block again."""
    queries, past = query.shape[2], key.shape[2] - query.shape[2]
    again = torch.is_grad_enabled() and queries > _BLOCK and not torch.compiler.is_compiling()
    sums = []
    for start in range(0, queries, _BLOCK):
        end = min(start + _BLOCK, queries)
        part = (
            query[:, :, start:end],
            key[:, :, : past + end],
            value[:, :, : past + end],
            document[:, None, start:end],
            key_document[:, None, : past + end],
            heads.tightness[:, None, None],
            heads.window[:, None, None],
            past + start,
        )
        sums.append(checkpoint(_block, *part, use_reentrant=False) if again else _block(*part))
    return torch.cat(sums, dim=2)


def _banded(
    query: Tensor, key: Tensor, value: Tensor, document: Tensor, key_document: Tensor, heads: Heads, reach: int
) -> Tensor:
    """Blocks of queries, all at once, each against its own keys and the ``reach`` keys before its first."""
    queries, past = query.shape[2], key.shape[2] - query.shape[2]
    block = min(_BLOCK, queries)
    behind = -queries % block
    first = max(past - reach, 0)
    before = reach - (past - first)
    key, value = (F.pad(tensor[:, :, first:], (0, 0, before, behind)) for tensor in (key, value))
    key_document = F.pad(key_document[:, first:], (before, behind), value=PADDING)
    query = F.pad(query, (0, 0, 0, behind))
    document = F.pad(document, (0, behind), value=PADDING)
    span = block + reach
    total = _block(
        query.unflatten(2, (-1, block)),
        key.unfold(2, span, block).transpose(-1, -2),
        value.unfold(2, span, block).transpose(-1, -2),
        document.unflatten(1, (-1, block))[:, None],
        key_document.unfold(1, span, block)[:, None],
        heads.tightness[:, None, None, None],
        heads.window[:, None, None, None],
        reach,
    )
    return total.flatten(2, 3)[:, :, :queries]


def _block(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    document: Tensor,
    key_document: Tensor,
    tightness: Tensor,
    window: Tensor,
    offset: int,
) -> Tensor:
    """The equations for one block; the first query stands ``offset`` keys after the first key."""
    alpha = (1 - tightness * (1 - query @ key.transpose(-1, -2))).relu().square()
    own = torch.arange(query.shape[-2], device=query.device) + offset
    distance = own[:, None] - torch.arange(key.shape[-2], device=query.device)
    seen = (distance >= 0) & (document[..., None] == key_document[..., None, :]) & (document[..., None] != PADDING)
    near = torch.where(distance < window, (torch.cos(math.pi * distance / window) + 1) / 2, 0.0)
    return torch.where(seen, alpha * near, 0.0) @ value
