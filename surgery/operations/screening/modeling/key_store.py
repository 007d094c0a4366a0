# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""The memory of cached keys that share a window: a single new token is written in place, and nothing is copied."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from surgery.operations.screening.modeling.blocks import pieces, take_slices

Held = tuple[torch.Tensor, ...]
PLACES = (2, 2, 1, 1)  # the dimension of the places in keys, values, columns and sinks
SPARE = 16  # least number of spare places; of many keys a thirty-second part
MAPPED = 2**17  # bytes from which on what is held by a processor gets pages of its own
ALIGNED = 64  # bytes: where a tensor may begin in them


class NewTokens(NamedTuple):
    """The tokens that a forward pass adds to a cache.

    Attributes:
        real: which of them are no padding, ``(batch or 1, tokens)``.
        first: which of them are the first of their document, of the same shape.
        plain: whether no row is padded and no document begins within a row.
        steady: whether this is one token a row, real in every row, not among the first ones, and of the row's only
            document.
        known: whether the mask of earlier tokens is what it was when they came.
    """

    real: torch.Tensor
    first: torch.Tensor
    plain: bool
    steady: bool
    known: bool


class KeyGroup(NamedTuple):
    """The cached keys of key-value heads that share a window.

    Attributes:
        heads: numbers of the key-value heads.
        window: how many keys back their query heads look, the query's own included; None for all keys.
        keys, values: ``(batch, heads, cached, head_dim)``, in any order.
        columns: numbers of these keys in the sequence, ``(batch or 1, cached)``; -1 where a row holds fewer.
        sinks: which of them are the first of their document, of the same shape.
    """

    heads: list[int]
    window: int | None
    keys: torch.Tensor
    values: torch.Tensor
    columns: torch.Tensor
    sinks: torch.Tensor


class KeyStore:
    """Keys and values of key-value heads with one window, and what is known of them.

    Once as many keys are held as a window reaches, the places after the first keys are a ring: the next token takes
    the place of the one key that its window has left. Before that, and without a window, there are spare places.
    """

    def __init__(self, heads: list[int], window: int | None, first_keys: int) -> None:
        """``heads``: numbers of the key-value heads; ``first_keys``: how many first keys of a document are kept."""
        self.heads, self.window, self.first_keys = heads, window, first_keys
        self.held: Held = ()  # keys, values, columns and sinks, with all places
        self.used = 0  # places that hold a key
        self.next: int | None = None  # in a ring, the place that the next token takes

    def group(self) -> KeyGroup:
        """The keys that are held, as views."""
        held = self.held
        if self.used < held[0].shape[2]:
            held = tuple(one.narrow(place, 0, self.used) for one, place in zip(held, PLACES, strict=True))
        return KeyGroup(self.heads, self.window, *held)

    def add(self, added: Held, steady: bool, plain: bool) -> KeyGroup:
        """Add tokens, forget what no later query can look at, and return what the queries of these tokens need.

        Args:
            added: keys and values of the store's heads; columns and sinks as those of :class:`KeyGroup`.
            steady: see :class:`NewTokens`.
            plain: whether every row holds the same columns, these included.
        """
        batch, _, count, _ = added[0].shape
        if not self.held:
            self._hold(self._trimmed(added, batch, plain))
            return KeyGroup(self.heads, self.window, *added)
        if count == 1 and self._has_place(added, steady or plain, plain):
            self._write(added)
            return self.group()
        joined = self._joined(added, batch, plain)
        # A single token is trimmed when the next one comes, which saves a copy of the window.
        self._hold(joined if count == 1 else self._trimmed(joined, batch, plain))
        return KeyGroup(self.heads, self.window, *joined)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change every tensor that has the batch's rows."""
        keys, values, *rows = self.held
        self.held = (change(keys), change(values), *(change(one) if len(one) > 1 else one for one in rows))

    def nbytes(self) -> int:
        """Memory of all places for keys and values, in bytes."""
        return sum(one.nbytes for one in self.held[:2])

    def _hold(self, held: Held) -> None:
        """Hold copies, which keep no greater tensor alive."""
        self.held, self.used, self.next = _copied(held), held[0].shape[2], None

    def _has_place(self, added: Held, steady: bool, plain: bool) -> bool:
        """Whether a single token can be written in place; makes a ring or spare places where there are none yet."""
        learns = torch.is_grad_enabled() and any(one.requires_grad for one in (added[0], self.held[0]))
        if learns or len(self.held[2]) < len(added[2]):
            return False
        if self.window is not None and not steady:
            return False
        if self.window is None or (self.next is None and self.used < self._room()):
            if self.used == self.held[0].shape[2]:
                places = self.used + max(SPARE, self.used // 32)
                most = places if self.window is None else self.first_keys + self.window
                self._enlarge(self.held, min(places, most))
        elif self.next is None:
            self._enlarge(self._trimmed(self._in_order(), len(added[0]), plain), self.first_keys + self.window)
            self.next = self._room()
        return True

    def _room(self) -> int:
        """Keys that a later query can look at, where there is a window."""
        assert self.window is not None
        return self.first_keys + self.window - 1

    def _enlarge(self, held: Held, places: int) -> None:
        """Hold these keys in new memory with more places."""
        self.used, shapes = held[0].shape[2], [list(one.shape) for one in held]
        for shape, dimension in zip(shapes, PLACES, strict=True):
            shape[dimension] = places
        self.held = _empty(held, shapes)
        for made, one, dimension in zip(self.held, held, PLACES, strict=True):
            made.narrow(dimension, 0, self.used).copy_(one)

    def _write(self, added: Held) -> None:
        """Write a single token into its place."""
        if self.held[0].is_inference() and not torch.is_inference_mode_enabled():
            self.held = tuple(one.clone() for one in self.held)  # such tensors cannot be written outside of it
        place = self.used if self.next is None else self.next
        for one, new, dimension in zip(self.held, added, PLACES, strict=True):
            one.narrow(dimension, place, 1).copy_(new)
        self.used = max(self.used, place + 1)
        if self.next is not None:
            last = self.held[0].shape[2] - 1
            self.next = self.first_keys if place == last else place + 1

    def _in_order(self) -> Held:
        """What is held, in the order of the sequence in every row; the first keys of a document before all others."""
        if self.next is None:
            return self.group()[2:]
        first, last = self.first_keys, self.held[0].shape[2]
        parts = [slice(0, first), slice(self.next, last), slice(first, self.next)]
        return tuple(take_slices(one, parts, place) for one, place in zip(self.held, PLACES, strict=True))

    def _joined(self, added: Held, batch: int, plain: bool) -> Held:
        """The held keys that these or later queries can look at, and the added ones."""
        old = self._in_order()
        if plain:
            parts = self._reachable(old[0].shape[2])
        else:
            old = self._trimmed(old, batch, plain)
            parts = [slice(0, old[0].shape[2])]
            rows = max(len(old[2]), len(added[2]))
            old, added = ((*one[:2], *(each.expand(rows, -1) for each in one[2:])) for one in (old, added))
        return tuple(
            torch.cat([*pieces(before, parts, place), after], place)
            for before, after, place in zip(old, added, PLACES, strict=True)
        )

    def _reachable(self, count: int) -> list[slice]:
        """Where, if every row holds the same columns, the keys lie that a later query can look at."""
        if self.window is None or count <= self._room():
            return [slice(0, count)]
        return [slice(0, self.first_keys), slice(count - self.window + 1, count)]

    def _trimmed(self, held: Held, batch: int, plain: bool) -> Held:
        """Without the keys that no later query can look at; in new memory if any are dropped.

        Of unequal rows at least as many places are left as a window reaches: the first keys of each row, then places
        without a key if it holds fewer than others, then its other keys.
        """
        count = held[0].shape[2]
        if self.window is None or count < self._room() or (plain and count == self._room()):
            return held
        if plain:
            parts = self._reachable(count)
            return tuple(take_slices(one, parts, place) for one, place in zip(held, PLACES, strict=True))
        keys, values, columns, sinks = *held[:2], *(one.expand(batch, -1) for one in held[2:])
        real = columns >= 0
        near = real & (_after(real) < self.window - 1)
        chosen = (firsts := real & sinks) & (_after(firsts) < self.first_keys)  # those of the last document
        columns = columns.masked_fill(~(chosen | near), -1)
        order = torch.where(chosen, columns - 2**32, columns).argsort(-1)
        order = take_slices(order, self._reachable(count), 1)

        def gathered(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.gather(2, order[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3]))

        return gathered(keys), gathered(values), columns.gather(1, order), sinks.gather(1, order)


def _copied(held: Held) -> Held:
    """Copies in memory that lasts; with gradients usual ones."""
    if torch.is_grad_enabled() and any(one.requires_grad for one in held):
        return tuple(one.clone() for one in held)
    return tuple(made.copy_(one) for made, one in zip(_empty(held, [one.shape for one in held]), held, strict=True))


def _empty(like: Held, shapes: Sequence[Sequence[int]]) -> Held:
    """Memory that lasts, for several tensors, in pages of its own.

    On a processor a prefill makes and frees tensors as large as all keys. Small tensors that stay would lie between
    them and split what is freed, so that the next large ones need new memory.
    """
    sizes = [one.element_size() * math.prod(shape) for one, shape in zip(like, shapes, strict=True)]
    starts = [0, *accumulate(-(-size // ALIGNED) * ALIGNED for size in sizes)]
    if like[0].device.type != "cpu" or starts[-1] < MAPPED or not hasattr(mmap, "MAP_ANONYMOUS"):
        return tuple(one.new_empty(shape) for one, shape in zip(like, shapes, strict=True))
    pages = torch.frombuffer(mmap.mmap(-1, starts[-1], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)
    parts = (pages[start : start + size] for start, size in zip(starts, sizes, strict=False))
    return tuple(part.view(one.dtype).view(*shape) for part, one, shape in zip(parts, like, shapes, strict=True))


def _after(marked: torch.Tensor) -> torch.Tensor:
    """How many marked places come after each place of a row."""
    return marked.flip(-1).cumsum(-1).flip(-1) - marked.long()
