# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""A key-value cache that keeps only the keys that the windows of screening can reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from surgery.operations.screening.modeling.acceptance import Acceptance
from surgery.operations.screening.modeling.blocks import take_heads
from surgery.operations.screening.modeling.key_store import KeyGroup, KeyStore, NewTokens
from surgery.runtime.operation import OperationCache


class WindowedKeys(torch.Tensor):
    """Stands for all keys (or values) of a layer while the family's code passes them on; holds the cached ones.

    Only screened attention can compute with it; any other computation raises an error. ``plain``: as in
    :class:`NewTokens`, of all tokens so far. ``exact``: whether there is one query a row, and of a window no key
    outside it is cached, so that every real key is seen.
    """

    groups: list[KeyGroup]
    plain: bool
    exact: bool

    @classmethod
    def of(cls, groups: list[KeyGroup], states: torch.Tensor, length: int, plain: bool, exact: bool) -> WindowedKeys:
        """A stand-in with the shape of all keys, in the memory of one number."""
        batch, heads, _, size = states.shape
        made = states.new_full((1,), torch.nan).expand(batch, heads, length, size).as_subclass(cls)
        made.groups, made.plain, made.exact = groups, plain, exact
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
        self.stores: list[KeyStore] = []
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
        self.stores = [KeyStore(heads, window, self.first_keys) for window, heads in members.items()]
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
        for store in self.stores:
            keys, values = (take_heads(states, store.heads) for states in (key_states, value_states))
            now.append(store.add((keys, values, columns, new_tokens.first), new_tokens.steady, self.plain))
        if past == 0 or [part.window for part in now] == [None]:
            # The first call brings all keys itself; and a layer without windows has all.
            whole = now[0]
            return (key_states, value_states) if past == 0 else (whole.keys, whole.values)
        exact = added == 1 and new_tokens.known and (self.plain or new_tokens.steady)
        given = (self.length, self.plain, exact)
        return tuple(WindowedKeys.of(now, states, *given) for states in (key_states, value_states))  # type: ignore[return-value]

    def nbytes(self) -> int:
        """Memory of the keys and values, in bytes."""
        return sum(store.nbytes() for store in self.stores)

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
        for store in self.stores:
            store.each(change)

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
        self._seen: torch.Tensor | None = None  # the mask of the tokens so far; None if none of them is padding
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
        whole = bool(real.all())
        plain = whole and bool((visible_keys == places).all())
        known = self._known(attention_mask, past, whole)
        # One real token a row, of the row's only document.
        one = added == 1 and whole and (plain or (self._seen is not None and self._of_one_document(visible_keys)))
        if plain:
            visible_keys, real = visible_keys[:1], real[:1]
        made: dict[int, NewTokens] = {}  # for each number of first keys
        for layer in self.layers:
            if isinstance(layer, WindowedLayer):
                if layer.first_keys not in made:
                    first = visible_keys <= layer.first_keys
                    steady = one and not bool(first.any())
                    made[layer.first_keys] = NewTokens(real, first, plain, steady, known)
                layer.new_tokens = made[layer.first_keys]

    def _of_one_document(self, visible_keys: torch.Tensor) -> bool:
        """Whether the last token of each row may look at every real token of its row."""
        assert self._seen is not None
        return bool((visible_keys[:, -1] == self._seen.sum(-1).to(visible_keys.device)).all())

    def _known(self, attention_mask: torch.Tensor | None, past: int, whole: bool) -> bool:
        """Whether a mask is what it was for the tokens before; takes note of it. ``whole``: all new tokens are real."""
        if attention_mask is None:
            before, self._seen = self._seen, None
            return before is None
        mask = attention_mask != 0
        earlier = mask[:, :past]
        known = bool(earlier.all()) if self._seen is None else torch.equal(earlier, self._seen)
        self._seen = None if self._seen is None and known and whole else mask
        return known

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
