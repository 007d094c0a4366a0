"""A cache that keeps of each head the keys within its window, by groups of heads with windows of about one length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .groups import Group, Heads, group_heads, softmask

_ROOM = 64  # tokens that a buffer can still take when it is made


class GroupKeys(NamedTuple):
    """The keys that the queries of one forward pass may see, of the heads of one group.

    Attributes:
        group: how far back the heads look.
        rows: which of all heads they are.
        softmask: of a query and the keys up to it, (heads of the group, 1, reach); None where windows are infinite.
        key, value: (batch, heads of the group, keys, size).
        document: (batch, keys).
    """

    group: Group
    rows: slice | Tensor
    softmask: Tensor | None
    key: Tensor
    value: Tensor
    document: Tensor


class _Kept:
    """Keys, values and documents of one group, at the end of buffers that have room for more."""

    def __init__(self, group: Group, window: Tensor) -> None:
        """``window``: of all heads."""
        self.group, self.rows = group, group.rows(window.device)
        self.softmask: Tensor | None = None
        if group.reach is not None:
            distance = torch.arange(group.reach - 1, -1, -1, device=window.device)
            self.softmask = softmask(distance, window.detach()[self.rows, None, None])
        self.begin = self.end = 0
        self.buffers: list[Tensor] = []

    @property
    def views(self) -> list[Tensor]:
        """Those of the kept keys; keys and values by their third dimension, documents by their second."""
        return [buffer.narrow(_along(buffer), self.begin, self.end - self.begin) for buffer in self.buffers]

    def append(self, new: Sequence[Tensor]) -> list[Tensor]:
        """Add keys. Return those that the new queries may see; drop those that no later query may see."""
        added, reach = new[0].shape[2], self.group.reach
        before = self.views
        kept = self.end - self.begin
        if reach is not None and kept > reach - 1:
            before = [view.narrow(_along(view), kept - reach + 1, reach - 1) for view in before]
            kept = reach - 1
        if reach is not None and added >= reach:
            seen = [torch.cat((old, one), dim=_along(one)) for old, one in _pairs(before, new)]
            last = [one.narrow(_along(one), one.shape[_along(one)] - reach + 1, reach - 1) for one in seen]
            self._renew(last, reach - 1)
            return seen
        if any(one.requires_grad for one in new):  # a buffer that is written to has no gradients
            self.buffers = [torch.cat((old, one), dim=_along(one)) for old, one in _pairs(before, new)]
            self.begin, self.end = 0, kept + added
            return self.buffers
        if not self.buffers or self.end + added > self.buffers[0].shape[2]:
            self._renew(before or [one.narrow(_along(one), 0, 0) for one in new], kept + added)
        else:
            self.begin = self.end - kept
        for buffer, one in zip(self.buffers, new, strict=True):
            buffer.narrow(_along(buffer), self.end, added).copy_(one)
        self.end += added
        return self.views

    def _renew(self, content: Sequence[Tensor], length: int) -> None:
        """New buffers with the content, for ``length`` keys and some room."""
        room = max(_ROOM, length // 8) if self.group.reach is None else _ROOM
        self.begin, self.end, self.buffers = 0, content[0].shape[2], []
        for one in content:
            shape = list(one.shape)
            shape[_along(one)] = length + room
            buffer = one.new_empty(shape)
            buffer.narrow(_along(one), 0, self.end).copy_(one)
            self.buffers.append(buffer)

    def change(self, rows: Callable[[Tensor], Tensor]) -> None:
        """Change the rows of the batch."""
        self.buffers = [rows(buffer) for buffer in self.buffers]


class MultiscreenCacheLayer(CacheLayerMixin):
    """The keys of one layer."""

    is_croppable = False  # what no head sees is gone

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.kept: list[_Kept] = []
        self.length = 0
        self.is_initialized = False

    def extend(self, key: Tensor, value: Tensor, document: Tensor, heads: Heads) -> list[GroupKeys]:
        """Add keys, and return those that the new queries may see, group by group.

        Args:
            key: (batch, heads, tokens, key_dim), position applied.
            value: (batch, heads, tokens, value_dim).
            document: (batch, tokens).
            heads: what each head has learned; windows must stay the same while the cache is used.
        """
        if not self.is_initialized:
            self.kept = [_Kept(group, heads.window) for group in group_heads(heads.window)]
            self.is_initialized = True
        self.length += key.shape[2]
        found = []
        for kept in self.kept:
            seen = kept.append((key[:, kept.rows], value[:, kept.rows], document))
            found.append(GroupKeys(kept.group, kept.rows, kept.softmask, *seen))
        return found

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Not possible: without documents and windows, nothing says what to keep.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("this cache works only in the forward pass of a Multiscreen model")

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the first keys give the sizes."""

    def get_seq_length(self) -> int:
        """Number of tokens that went through the layer, kept or not."""
        return self.length

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of a mask over all tokens so far."""
        return self.length + query_length, 0

    def nbytes(self) -> int:
        """Memory of the buffers."""
        return sum(buffer.nbytes for kept in self.kept for buffer in kept.buffers)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens.

        Raises:
            ValueError: keys that the shorter sequence would see are gone.
        """
        count = abs(tokens_to_remove)
        if any(kept.group.reach is not None and self.length > kept.end - kept.begin for kept in self.kept) and count:
            raise ValueError("this cache cannot be cut back: it keeps only keys that the next tokens can see")
        self.length -= count
        for kept in self.kept:
            kept.end -= count

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the rows of the batch in another order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows of the batch."""
        for kept in self.kept:
            kept.change(lambda buffer: buffer[indices.to(buffer.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        for kept in self.kept:
            kept.change(lambda buffer: buffer.repeat_interleave(repeats, dim=0))


class MultiscreenCache(Cache):
    """The keys of a model.

    Attributes:
        alone: whether every row so far is one document from its first token, without padding.
    """

    def __init__(self, layers: int) -> None:
        """An empty cache for a model with this many layers."""
        super().__init__(layers=[MultiscreenCacheLayer() for _ in range(layers)])
        self.alone = True

    def extend(self, layer: int, key: Tensor, value: Tensor, document: Tensor, heads: Heads) -> list[GroupKeys]:
        """As ``MultiscreenCacheLayer.extend``, of one layer."""
        windowed: Any = self.layers[layer]
        found: list[GroupKeys] = windowed.extend(key, value, document, heads)
        return found

    def nbytes(self) -> int:
        """Memory of all buffers."""
        layers: list[Any] = self.layers
        return sum(layer.nbytes() for layer in layers)


def _along(tensor: Tensor) -> int:
    return 2 if tensor.dim() == 4 else 1


def _pairs(old: Sequence[Tensor], new: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(old or [one.narrow(_along(one), 0, 0) for one in new], new, strict=True))
