"""Blocks of queries and the keys that they look at, several blocks at once; sums and gradients of each such piece."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)
from torch import Tensor

from .groups import PADDING, Group, softmask

_BLOCK, _LEAST_BLOCK = 128, 16
_NUMBERS = {"cpu": 2**20}  # in a piece: what a cache holds
_NUMBERS_ELSEWHERE = 2**26  # what keeps a GPU busy


class Piece(NamedTuple):
    """Some blocks of queries.

    Attributes:
        queries: of all blocks together.
        keys: alike.
        number: of blocks.
        offset: the first query of each block stands this many keys after the first key of the block.
    """

    queries: slice
    keys: slice
    number: int
    offset: int


class Blocks:
    """The queries and keys of some heads, cut into pieces."""

    def __init__(
        self,
        group: Group,
        documents: tuple[Tensor | None, Tensor | None],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        tightness: Tensor,
        window: Tensor,
    ) -> None:
        """Pad queries and keys to whole blocks, if the group has a reach."""
        document, key_document = documents
        self.queries, self.keys = query.shape[2], key.shape[2]
        self.past = self.keys - self.queries
        self.tightness, self.window = (numbers[:, None, None, None] for numbers in (tightness, window))
        self.infinite, self.reach = group.infinite, group.reach
        self.numbers = _NUMBERS.get(query.device.type, _NUMBERS_ELSEWHERE) // (query.shape[0] * query.shape[1])
        self.before = self.behind = self.first = 0
        if group.reach is not None:
            self.block = min(max(group.reach, _LEAST_BLOCK), _BLOCK, self.queries)
            # A block's keys are whole blocks too: its own and those before it that hold the reach.
            self.offset = -(-(group.reach - 1) // self.block) * self.block
            self.span = self.offset + self.block
            self.first = max(self.past - self.offset, 0)
            self.before = self.offset - (self.past - self.first)
            self.behind = -self.queries % self.block
            query = F.pad(query, (0, 0, 0, self.behind))
            key, value = (F.pad(t[:, :, self.first :], (0, 0, self.before, self.behind)) for t in (key, value))
            if document is not None and key_document is not None:
                document = F.pad(document, (0, self.behind), value=PADDING)
                key_document = F.pad(key_document[:, self.first :], (self.before, self.behind), value=PADDING)
        self.query, self.key, self.value = query, key, value
        self.document, self.key_document = document, key_document
        self._near: Tensor | None = None

    def pieces(self) -> Iterator[Piece]:
        """The pieces, in the order of the queries."""
        if self.reach is None:
            block = min(max(self.numbers // self.keys, _LEAST_BLOCK), _BLOCK)
            for start in range(0, self.queries, block):
                end = min(start + block, self.queries)
                yield Piece(slice(start, end), slice(0, self.past + end), 1, self.past + start)
            return
        blocks = self.query.shape[2] // self.block
        at_once = max(self.numbers // (self.block * self.span), 1)
        for first in range(0, blocks, at_once):
            last = min(first + at_once, blocks)
            keys = slice(first * self.block, (last - 1) * self.block + self.span)
            yield Piece(slice(first * self.block, last * self.block), keys, last - first, self.offset)

    def total(self, piece: Piece) -> Tensor:
        """The sums of a piece, (batch, heads, queries of the piece, value_dim)."""
        weight = self._root(piece).square_().mul_(self._softmask(piece))
        if (seen := self._seen(piece)) is not None:
            weight.mul_(seen)
        return (weight @ self._across(self.value, piece).transpose(-1, -2)).flatten(2, 3)

    def gradients(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """The gradients of query, key, value, tightness and window, from that of the sums."""
        gradient = F.pad(gradient, (0, 0, 0, self.behind))
        query, key, value = (torch.zeros_like(tensor) for tensor in (self.query, self.key, self.value))
        tightness, window = (torch.zeros_like(numbers[:, 0, 0, 0]) for numbers in (self.tightness, self.window))
        for piece in self.pieces():
            root, softmask, seen = self._root(piece), self._softmask(piece), self._seen(piece)
            given = self._along(gradient, piece)
            change = given @ self._across(self.value, piece)  # of the loss, by the weights alpha m
            masked = root * softmask
            if seen is not None:
                masked.mul_(seen)
            self._add(value, given.transpose(-1, -2) @ (root * masked), piece)
            if not self.infinite:
                steep = change * root if seen is None else (change * root).mul_(seen)
                steep = steep.mul_(root).sum((0, 2)).mul_(self._slope(piece))
                window += steep.sum((-1, -2))
            change.mul_(masked).mul_(2)  # by the root of alpha
            # The root is 1 + tightness (q.k - 1), so that (root - 1) / tightness is its change by the tightness.
            tightness += ((change * root).sum((0, 2, 3, 4)) - change.sum((0, 2, 3, 4))) / self.tightness[:, 0, 0, 0]
            change.mul_(self.tightness)
            query[:, :, piece.queries] = (change @ self._across(self.key, piece).transpose(-1, -2)).flatten(2, 3)
            self._add(key, self._along(self.query, piece).transpose(-1, -2) @ change, piece)
        key, value = (self._unpadded(tensor) for tensor in (key, value))
        return query[:, :, : self.queries], key, value, tightness, window

    def _along(self, tensor: Tensor, piece: Piece) -> Tensor:
        """By queries: (batch, heads, blocks, block, size)."""
        return tensor[:, :, piece.queries].unflatten(2, (piece.number, -1))

    def _across(self, tensor: Tensor, piece: Piece) -> Tensor:
        """By keys, turned: (batch, heads, blocks, size, span)."""
        part = tensor[:, :, piece.keys]
        return part.unfold(2, self.span, self.block) if piece.number > 1 else part.transpose(-1, -2).unsqueeze(2)

    def _add(self, target: Tensor, part: Tensor, piece: Piece) -> None:
        """Add gradients by keys, (batch, heads, blocks, size, span), to those of all keys."""
        if piece.number == 1:
            target[:, :, piece.keys] += part.squeeze(2).transpose(-1, -2)
            return
        length = piece.number * self.block
        for start in range(0, self.span, self.block):  # the blocks overlap: first all their first parts, and so on
            turned = part[..., start : start + self.block].transpose(-1, -2).flatten(2, 3)
            target[:, :, piece.keys.start + start : piece.keys.start + start + length] += turned

    def _unpadded(self, tensor: Tensor) -> Tensor:
        """Gradients of all keys but padding; keys that no query sees have gradient 0."""
        if self.reach is None:
            return tensor
        return F.pad(tensor[:, :, self.before : tensor.shape[2] - self.behind], (0, 0, self.first, 0))

    def _root(self, piece: Piece) -> Tensor:
        """The root of alpha: max(1 - (1 - q.k) / r, 0), (batch, heads, blocks, block, span)."""
        scaled = self._along(self.query, piece) * self.tightness
        return (scaled @ self._across(self.key, piece)).add_(1 - self.tightness).relu_()

    def _softmask(self, piece: Piece) -> Tensor:
        """m, (heads or 1, 1, block, span): the same for all blocks of a group with a reach."""
        if self.reach is not None and self._near is not None:
            return self._near
        distance = self._distance(piece)
        near = (distance >= 0).to(self.query.dtype) if self.infinite else softmask(distance, self.window)
        self._near = near
        return near

    def _slope(self, piece: Piece) -> Tensor:
        """The change of m by the window: pi d sin(pi d / w) / (2 w^2), (heads, block, span)."""
        distance, window = self._distance(piece), self.window
        seen = (distance >= 0) & (distance < window)
        rise = torch.sin(math.pi * distance / window) * (math.pi / 2) * distance / window.square()
        return torch.where(seen, rise, 0.0).squeeze(1)

    def _seen(self, piece: Piece) -> Tensor | None:
        """Which keys are of the query's document, (batch, 1, blocks, block, span); None: all."""
        if self.document is None or self.key_document is None:
            return None
        own = self.document[:, None, piece.queries, None].unflatten(2, (piece.number, -1))
        other = self._across(self.key_document[:, None, :, None], piece)
        return (own == other) & (own != PADDING)

    def _distance(self, piece: Piece) -> Tensor:
        """How many keys a key stands before a query, (block, span)."""
        block = (piece.queries.stop - piece.queries.start) // piece.number
        span = self.span if self.reach is not None else piece.keys.stop
        own = torch.arange(block, device=self.query.device) + piece.offset
        return own[:, None] - torch.arange(span, device=self.query.device)
