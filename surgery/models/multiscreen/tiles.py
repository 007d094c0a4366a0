"""The sum over accepted keys of a Multiscreen head, without a (queries, keys) matrix.

    alpha = max(1 - (1 - q.k) / r, 0)^2    m = (cos(pi d / w) + 1) / 2 for 0 <= d < w, else 0    h = sum alpha m v

Nothing is normalized over the keys, so blocks of queries are independent of each other. Blocks of a group with a reach
take the keys within the reach, other blocks all keys before them. The backward pass computes each block again, with the
gradients in closed form, so that memory is linear in the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import Blocks
from .cache import GroupKeys
from .groups import PADDING, Group, Heads, group_heads


def accepted_sum(
    query: Tensor, key: Tensor, value: Tensor, documents: tuple[Tensor, Tensor] | None, heads: Heads
) -> Tensor:
    """The sum of the values, each times its relevance.

    Args:
        query: (batch, heads, queries, key_dim), unit length, position applied; the queries are the last of the keys.
        key: (batch, heads, keys, key_dim), alike.
        value: (batch, heads, keys, value_dim).
        documents: (batch, queries) and (batch, keys), the document of each query and key as a number, or ``PADDING``; a
            query sees the keys of its own document. None if all are of one document.
        heads: what each head has learned.

    Returns:
        (batch, heads, queries, value_dim); 0 where a query accepts no key.
    """
    if torch.compiler.is_compiling():  # windows are on the device; reading them would break the graph
        groups = [Group(list(range(key.shape[1])), None, False)]
        if documents is not None:  # the compiler takes no tensor twice
            documents = documents[0], documents[1].clone()
    else:
        groups = group_heads(heads.window, key.shape[2])
    with torch.autocast(query.device.type, enabled=False):
        total: Tensor = AcceptedSum.apply(query, key, value, *heads, *(documents or (None, None)), groups)
    return total


def accepted_sum_of_groups(query: Tensor, parts: Sequence[GroupKeys], document: Tensor | None, heads: Heads) -> Tensor:
    """As :func:`accepted_sum`, with the keys of a :class:`MultiscreenCacheLayer`; each group has its own number.

    Args:
        query: as there.
        parts: from ``MultiscreenCacheLayer.extend``.
        document: (batch, queries); None if all queries and keys are of one document.
        heads: what each head has learned.
    """
    if query.shape[2] == 1 and not torch.is_grad_enabled():
        return _one_query(query, parts, document, heads)
    total = query.new_empty(*query.shape[:3], parts[0].value.shape[-1])
    with torch.autocast(query.device.type, enabled=False):
        for group, rows, _, key, value, key_document in parts:
            documents = (None, None) if document is None else (document, key_document)
            near = group.alone()
            if group.reach is not None and group.reach >= key.shape[2]:
                near = near._replace(reach=None)
            learned = (heads.tightness[rows], heads.window[rows])
            total[:, rows] = AcceptedSum.apply(query[:, rows], key, value, *learned, *documents, [near])
    return total


def _one_query(query: Tensor, parts: Sequence[GroupKeys], document: Tensor | None, heads: Heads) -> Tensor:
    """The sums of a single token, as in decoding, where few operations count more than few keys."""
    with torch.autocast(query.device.type, enabled=False):
        tightness = heads.tightness[:, None, None]
        scaled, least = query * tightness, 1 - tightness
        total = query.new_empty(*query.shape[:3], parts[0].value.shape[-1])
        for _, rows, softmask, key, value, key_document in parts:
            weight = (scaled[:, rows] @ key.transpose(-1, -2)).add_(least[rows]).relu_().square_()
            if softmask is not None:
                weight.mul_(softmask[..., -key.shape[2] :])
            if document is not None:
                own = document[:, None, :, None]
                weight.mul_((own == key_document[:, None, None]) & (own != PADDING))
            total[:, rows] = weight @ value
    return total


class AcceptedSum(torch.autograd.Function):
    """:func:`accepted_sum`; the documents are None if no row has a second one or padding."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        tightness: Tensor,
        window: Tensor,
        document: Tensor | None,
        key_document: Tensor | None,
        groups: Sequence[Group],
    ) -> Tensor:
        """The sum, one group after another."""
        ctx.save_for_backward(query, key, value, tightness, window, document, key_document)
        ctx.groups = groups
        total = query.new_empty(*query.shape[:3], value.shape[-1])
        for group in groups:
            own, rows = _taken(group, total, (query, key, value), (tightness, window))
            blocks = Blocks(group, (document, key_document), *own)
            part = torch.cat([blocks.total(piece) for piece in blocks.pieces()], dim=2)[:, :, : query.shape[2]]
            if rows is None:
                return part
            total[:, rows] = part
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of query, key, value, tightness and window."""
        *tensors, tightness, window, document, key_document = ctx.saved_tensors
        whole = [torch.empty_like(tensor) for tensor in (*tensors, tightness, window)]
        for group in ctx.groups:
            own, rows = _taken(group, gradient, tensors, (tightness, window))
            blocks = Blocks(group, (document, key_document), *own)
            found = blocks.gradients(gradient if rows is None else gradient[:, rows])
            if rows is None:
                return *found, None, None, None
            for target, part in zip(whole, found, strict=True):
                if target.dim() == 1:
                    target[rows] = part
                else:
                    target[:, rows] = part
        return *whole, None, None, None


def _taken(
    group: Group, like: Tensor, tensors: Sequence[Tensor], learned: Sequence[Tensor]
) -> tuple[list[Tensor], slice | Tensor | None]:
    """The tensors of the heads of a group, and which heads these are; None for all heads."""
    if len(group.heads) == like.shape[1]:
        return [*tensors, *learned], None
    rows = group.rows(like.device)
    return [*(tensor[:, rows] for tensor in tensors), *(numbers[rows] for numbers in learned)], rows
