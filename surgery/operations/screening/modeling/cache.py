# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""A key-value cache that keeps only the keys that the windows of screening can reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from surgery.operations.screening.modeling.acceptance import Acceptance
from surgery.operations.screening.modeling.blocks import pieces, take_heads, take_slices
from surgery.runtime.operation import OperationCache


class KeyGroup(NamedTuple):
    """The cached keys of key-value heads that share a window.

    Attributes:
        heads: numbers of the key-value heads.
        window: how many keys back their query heads look, the query's own included; None for all keys.
        keys, values: ``(batch, heads, cached, head_dim)``.
        columns: numbers of these keys in the sequence, ``(batch or 1, cached)``, rising; -1 where a row holds fewer.
        sinks: which of them are the first of their document, of the same shape.
    """

    heads: list[int]
    window: int | None
    keys: torch.Tensor
    values: torch.Tensor
    columns: torch.Tensor
    sinks: torch.Tensor

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> KeyGroup:
        """With every tensor that has the batch's rows changed."""
        rows = [change(one) if len(one) > 1 else one for one in (self.columns, self.sinks)]
        return KeyGroup(self.heads, self.window, change(self.keys), change(self.values), *rows)


class NewTokens(NamedTuple):
    """The tokens that a forward pass adds to a cache; see :meth:`WindowedCache.note`.

    Attributes:
        real: which of them are no padding, ``(batch or 1, tokens)``.
        first: which of them are the first of their document, of the same shape.
        plain: whether no row is padded and no document begins within a row.
    """

    real: torch.Tensor
    first: torch.Tensor
    plain: bool


class WindowedKeys(torch.Tensor):
    """Stands for all keys (or values) of a layer while the family's code passes them on; holds the cached ones.

    Only screened attention can compute with it; any other computation raises an error. ``plain``: as in
    :class:`NewTokens`, of all tokens so far.
    """

    groups: list[KeyGroup]
    plain: bool

    @classmethod
    def of(cls, groups: list[KeyGroup], states: torch.Tensor, length: int, plain: bool) -> WindowedKeys:
        """A stand-in with the shape of all keys, in the memory of one number."""
        batch, heads, _, size = states.shape
        made = states.new_full((1,), torch.nan).expand(batch, heads, length, size).as_subclass(cls)
        made.groups, made.plain = groups, plain
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Shape, dtype and device can be read."""
        name = func.__name__
        name = getattr(func.__self__, "__name__", name) if name == "__get__" else name
        if name in ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "size", "dim", "is_floating_point"):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise RuntimeError(
            f"this family's code calls {name} on all keys, but a windowed cache holds only some: "
            "use a cache of another kind."
        )


class WindowedLayer(CacheLayerMixin):
    """Keys and values of one screened layer: per key-value head the keys inside its window, and the first ones.

    The window of a key-value head is the widest of its query heads; if one of them looks at all keys, all are kept.
    Rows of a batch may be padded: windows count real keys only, and every row keeps its own first keys.
    """

    def __init__(self, windows: list[int | None], sinks: int) -> None:
        """``windows``: of each query head, None for no window; ``sinks``: number of first keys that are kept."""
        super().__init__()
        self.windows, self.first_keys = windows, sinks
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.groups: list[KeyGroup] = []
        self.new_tokens: NewTokens | None = None
        self.length = 0
        self.plain = True  # whether every row holds the same columns
        self.is_initialized = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make room for the key-value heads, grouped by their windows."""
        self.dtype, self.device = key_states.dtype, key_states.device
        count = key_states.shape[1]
        each = len(self.windows) // count
        members: dict[int | None, list[int]] = {}
        for head in range(count):
            own = self.windows[head * each : (head + 1) * each]
            widest = None if None in own else max(window for window in own if window is not None)
            members.setdefault(widest, []).append(head)
        none = torch.empty(1, 0, dtype=torch.long, device=self.device)
        self.groups = [
            KeyGroup(heads, window, key_states[:, heads, :0], value_states[:, heads, :0], none, none.bool())
            for window, heads in members.items()
        ]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values, drop those that no later query can look at, and return those for these queries."""
        new_tokens, self.new_tokens = self.new_tokens, None
        if new_tokens is None:
            raise RuntimeError("a windowed cache works only in the forward pass of its own model")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past, added = self.length, key_states.shape[-2]
        self.length = past + added
        self.plain = self.plain and new_tokens.plain
        numbers = torch.arange(past, self.length, device=key_states.device)[None]
        columns = numbers if self.plain else numbers.masked_fill(~new_tokens.real, -1)
        now = []
        for number, old in enumerate(self.groups):
            # At first in memory of their own: a view would hold the keys of the other heads too.
            keys, values = (
                states[:, old.heads] if past == 0 else take_heads(states, old.heads)
                for states in (key_states, value_states)
            )
            new = KeyGroup(old.heads, old.window, keys, values, columns, new_tokens.first)
            whole = new if past == 0 else self._joined(old, new)
            now.append(whole)
            # A single token is trimmed when the next one comes, which saves a copy of the window.
            self.groups[number] = whole if added == 1 else self._trimmed(whole, key_states.shape[0])
        if past == 0 or [part.window for part in now] == [None]:
            # The first call brings all keys itself; and a layer without windows has all.
            whole = now[0]
            return (key_states, value_states) if past == 0 else (whole.keys, whole.values)
        return tuple(WindowedKeys.of(now, states, self.length, self.plain) for states in (key_states, value_states))  # type: ignore[return-value]

    def _joined(self, old: KeyGroup, new: KeyGroup) -> KeyGroup:
        """The keys of ``old`` that a later query can look at, and those of ``new``."""
        if self.plain:
            parts = self._reachable(old)
        else:
            old = self._trimmed(old, len(new.keys))
            parts = [slice(0, old.columns.shape[-1])]
            rows = max(len(old.columns), len(new.columns))
            old, new = (
                one._replace(columns=one.columns.expand(rows, -1), sinks=one.sinks.expand(rows, -1))
                for one in (old, new)
            )
        joined = (
            torch.cat([*pieces(before, parts, dimension), added], dimension)
            for before, added, dimension in zip(old[2:], new[2:], (2, 2, 1, 1), strict=True)
        )
        return KeyGroup(old.heads, old.window, *joined)

    def _reachable(self, group: KeyGroup) -> list[slice]:
        """Where, if every row holds the same columns, the keys lie that a later query can look at."""
        count = group.columns.shape[-1]
        if group.window is None or count <= self.first_keys + group.window - 1:
            return [slice(0, count)]
        return [slice(0, self.first_keys), slice(count - group.window + 1, count)]

    def _trimmed(self, group: KeyGroup, batch: int) -> KeyGroup:
        """The group without the keys that no later query can look at; in new memory if any are dropped."""
        if group.window is None:
            return group
        count, room = group.columns.shape[-1], self.first_keys + group.window - 1
        if count <= room:
            return group
        if self.plain:
            parts = self._reachable(group)
            taken = [take_slices(tensor, parts, 2) for tensor in (group.keys, group.values)]
            return KeyGroup(group.heads, group.window, *taken, *(take_slices(one, parts, 1) for one in group[4:]))
        columns, sinks = (one.expand(batch, -1) for one in group[4:])
        real = columns >= 0
        later = real.flip(-1).cumsum(-1).flip(-1) - real.long()  # real keys after this one
        columns = columns.masked_fill(~(real & (sinks | (later < group.window - 1))), -1)
        order = columns.argsort(-1)[:, count - room :]  # those to be dropped come first

        def gathered(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.gather(2, order[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3]))

        tensors = (gathered(group.keys), gathered(group.values), columns.gather(1, order), sinks.gather(1, order))
        return KeyGroup(group.heads, group.window, *tensors)

    def nbytes(self) -> int:
        """Memory of the keys and values, in bytes."""
        return sum(group.keys.nbytes + group.values.nbytes for group in self.groups)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Sizes as if all keys were cached: masks are made for all of them, and each head takes its columns."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Number of tokens so far."""
        return self.length

    def get_max_length(self) -> int:
        """-1: no limit."""
        return -1

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.groups = [group.each(change) for group in self.groups]

    def offload(self) -> None:
        """To the processor's memory."""
        self._each(lambda tensor: tensor.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Back to the device."""
        self._each(lambda tensor: tensor.to(self.device, non_blocking=True))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Rows in another order, for beam search."""
        self._each(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row several times."""
        self._each(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Some of the rows."""
        self._each(lambda tensor: tensor[indices, ...])

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: the keys that a shorter sequence needs were dropped."""
        if tokens_to_remove != 0:
            raise ValueError(
                "a windowed cache cannot be cropped, as assisted generation needs: keys outside the windows were "
                "dropped. Set config.windowed_cache = False."
            )


class WindowedCache(OperationCache):
    """transformers' cache for a screened model, whose screened layers keep only the keys that windows can reach.

    Outputs are the same as with all keys in the cache. Other layers are as in ``DynamicCache``.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """``model``: with screening on some layers; its windows must not grow while the cache is in use."""
        super().__init__(config=model.config)
        module: Any
        screened: dict[int, Acceptance] = {}
        for module in model.modules():
            if isinstance(getattr(module, "screening", None), Acceptance) and not hasattr(module, "sinks"):
                screened[int(module.layer_idx)] = module.screening
        windowed = 0
        for number, screening in screened.items():
            if type(self.layers[number]) is DynamicLayer and screening.enabled:
                windows = screening.reach(screening.num_heads).windows
                self.layers[number] = WindowedLayer(windows, screening.sinks)
                windowed += 1
        if not windowed:
            raise ValueError(
                "windowed_cache needs a layer with screening and an ordinary cache: no sliding or recurrent layer, "
                "and none with learned sinks. This model has none; set config.windowed_cache = False."
            )

    def note(self, attention_mask: Any, visible_keys: torch.Tensor) -> None:
        """Tell the layers which of the new keys are real, and which are the first of their document.

        Args:
            attention_mask: as the base model is given it: ``(batch, past + length)``, or None.
            visible_keys: n of the new tokens, ``(batch or 1, length)``.
        """
        past, added = self.get_seq_length(), visible_keys.shape[-1]
        if attention_mask is not None and (not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2):
            raise ValueError("windowed_cache works with a 2-D attention mask or none")
        real = torch.ones_like(visible_keys, dtype=torch.bool)
        if attention_mask is not None:
            if attention_mask.shape[-1] != past + added:
                raise ValueError(
                    f"the attention mask covers {attention_mask.shape[-1]} tokens, but {past} are in the windowed "
                    f"cache and {added} are new"
                )
            real = attention_mask[:, past:].to(visible_keys.device) != 0
            visible_keys, real = torch.broadcast_tensors(visible_keys, real)
        places = torch.arange(past + 1, past + added + 1, device=visible_keys.device)
        plain = bool(real.all()) and bool((visible_keys == places).all())
        if plain:
            visible_keys, real = visible_keys[:1], real[:1]
        made: dict[int, NewTokens] = {}  # for each number of first keys
        for layer in self.layers:
            if isinstance(layer, WindowedLayer):
                if layer.first_keys not in made:
                    made[layer.first_keys] = NewTokens(real, visible_keys <= layer.first_keys, plain)
                layer.new_tokens = made[layer.first_keys]

    def nbytes(self) -> int:
        """Memory of all keys and values, in bytes."""
        total = 0
        layer: Any
        for layer in self.layers:
            if isinstance(layer, WindowedLayer):
                total += layer.nbytes()
            elif getattr(layer, "keys", None) is not None:
                total += layer.keys.nbytes + layer.values.nbytes
        return total
