# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""Attention modules with operations: the family's own forward, whose attention backend is found in a wrapper."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from surgery.runtime.operation import CHUNK, OPERATIONS, VISIBLE_KEYS, AttentionCall, OperationModule
from surgery.runtime.visible_keys import visible_keys_in_layer

PREFIX = "Surgery"


def operated_attention(
    name: str,
    backend: Callable[..., Any],
    eager: Callable[..., Any] | None,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **options: Any,
) -> Any:
    """The backend of a module with operations: each may scale the query and the output.

    Between the two, one of them attends, or the backend.

    Arguments as :class:`AttentionCall`.
    """
    operations: list[OperationModule] = [getattr(module, name) for name in OPERATIONS if hasattr(module, name)]
    relayed = getattr(module, VISIBLE_KEYS, None)  # see relay_class
    if (visible_keys := options.pop(VISIBLE_KEYS, relayed)) is None:
        if any(operation.enabled for operation in operations):
            raise RuntimeError(
                f"{type(module).__name__} was called without the number of visible keys: call it through its model, "
                f"or pass {VISIBLE_KEYS}=count_visible_keys(...)."
            )
        return backend(module, query, key, value, attention_mask, **options)
    if operations:
        # Some families build the window into the mask alone, and keep it on the module.
        window = options.get("sliding_window", getattr(module, "sliding_window", None))
        scaling = [operation for operation in operations if operation.enabled and operation.scales_query]
        scaled, chunk, in_layer = query, getattr(module, CHUNK, None), visible_keys
        if scaling or chunk is not None:
            in_layer = _in_layer(visible_keys, attention_mask, (name, key.shape[2], window, chunk))
        for operation in scaling:
            scaled = operation.scale_query(scaled, in_layer.to(query.device))
        visible_keys = (visible_keys if chunk is None else in_layer).to(query.device)
        tensors = (scaled, query, key, value, attention_mask, visible_keys)
        call = AttentionCall(name, backend, eager, module, *tensors, window, options)
        attended = next((found for one in operations if (found := one.attend(call)) is not None), None)
        if attended is None:
            attended = backend(module, scaled, key, value, attention_mask, **options)
        return _scaled_output(operations, attended, value.shape[-1])
    return backend(module, query, key, value, attention_mask, **options)


def _scaled_output(operations: list[OperationModule], attended: Any, head_dim: int) -> Any:
    """The output and the weights of a backend, with the output scaled by the operations that scale it."""
    scaling = [operation for operation in operations if operation.enabled and operation.scales_output]
    if not scaling:
        return attended
    output, *others = attended
    shape = output.shape
    if shape[-1] != head_dim:  # vLLM's backend joins the heads
        output = output.unflatten(-1, (-1, head_dim))
    for operation in scaling:
        output = operation.scale_output(output)
    return (output.reshape(shape), *others)


def _in_layer(visible_keys: torch.Tensor, mask: Any, case: tuple[Any, ...]) -> torch.Tensor:
    """:func:`visible_keys_in_layer`, once for the layers of a forward pass that share a mask and a case.

    A count is kept on ``visible_keys``, which every pass makes anew; a compiler merges equal computations itself.
    """
    if torch.compiler.is_compiling():
        return visible_keys_in_layer(visible_keys, mask, *case)
    kept: dict[Any, tuple[Any, torch.Tensor]] = visible_keys.__dict__.setdefault("surgery_counts", {})
    if (id(mask), case) not in kept:  # with the mask, whose id no other object gets while it lives
        kept[id(mask), case] = mask, visible_keys_in_layer(visible_keys, mask, *case)
    return kept[id(mask), case][1]


class OperatedBackends:
    """Stands where a family's attention looks up ``ALL_ATTENTION_FUNCTIONS``, and wraps the backend found there."""

    def __init__(self, backends: Any) -> None:
        self._backends = backends

    def get_interface(self, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        """The backend of that name, or the family's own dense attention, with the operations."""
        return functools.partial(operated_attention, name, self._backends.get_interface(name, default), default)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return functools.partial(operated_attention, name, self._backends[name], None)


@functools.cache
def attention_class(stock: type[nn.Module]) -> type[nn.Module]:
    """Subclass of a family's attention class whose forward finds :class:`OperatedBackends`."""
    forward = rebound(stock.forward)
    if forward is None:
        raise ImportError(
            f"{stock.__module__}.{stock.__name__}.forward does not look up ALL_ATTENTION_FUNCTIONS in this version of "
            f"transformers ({transformers.__version__}); the operation would be lost, so the model is not loaded. "
            "A newer model-surgery may know how: `surgery refresh` brings this code up to date."
        )
    return subclass(attention_class, stock, stock, {"forward": forward, "_operated_attention": True})


@functools.cache
def uses_a_backend(stock: type[nn.Module]) -> bool:
    """Whether a class's forward looks up an attention backend."""
    return rebound(stock.forward) is not None


def rebound(function: Any) -> types.FunctionType | None:
    """A copy of a function, decorators included, that finds :class:`OperatedBackends`; None if it uses no backend.

    A decorator's wrapper holds the function that it wraps in its closure; the copy of the wrapper holds the copy.
    """
    if not isinstance(function, types.FunctionType):
        return None
    scope, closure = function.__globals__, function.__closure__
    if "ALL_ATTENTION_FUNCTIONS" in function.__code__.co_names:
        scope = dict(scope)
        # torch.compile looks globals up in the module that __name__ names; this scope is not that module's.
        del scope["__name__"]
        scope["ALL_ATTENTION_FUNCTIONS"] = OperatedBackends(scope["ALL_ATTENTION_FUNCTIONS"])
        wrapped = None
    else:
        inner = getattr(function, "__wrapped__", None)
        wrapped = rebound(inner)
        if wrapped is None or not any(cell.cell_contents is inner for cell in closure or ()):
            return None
        closure = tuple(types.CellType(wrapped) if cell.cell_contents is inner else cell for cell in closure or ())
    copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, closure)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = function.__annotations__
    copy.__doc__ = function.__doc__
    copy.__module__ = __name__
    if wrapped is not None:
        copy.__wrapped__ = wrapped  # type: ignore[attr-defined]
    return copy


def subclass(
    maker: Callable[..., Any], stock: type[nn.Module], base: type[Any], namespace: dict[str, Any]
) -> type[Any]:
    """A subclass of ``stock`` made at run time. No import finds it by name, so it is pickled as a call of ``maker``."""

    def reduce(module: nn.Module) -> tuple[Any, ...]:
        return _new_module, (maker, stock), module.__getstate__()

    bases = (stock,) if base is stock else (base, stock)
    return type(PREFIX + stock.__name__, bases, {**namespace, "__reduce__": reduce, "__module__": __name__})


def _new_module(maker: Callable[..., Any], stock: type[nn.Module]) -> nn.Module:
    made: Any = maker(stock)
    return made.__new__(made)


@functools.cache
def relay_class(stock: type[nn.Module]) -> type[nn.Module]:
    """Subclass of a layer that passes no keywords on: it hands n to its attention all the same.

    n is bound to the call (not to the module) until the layer runs, so that gradient checkpointing, which runs it
    again later, runs it with the same n.
    """

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault(VISIBLE_KEYS, getattr(self.surgery_counted[0], VISIBLE_KEYS, None))
        return stock.__call__(self, *args, **kwargs)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        setattr(self.surgery_operated[0], VISIBLE_KEYS, kwargs.pop(VISIBLE_KEYS, None))
        return stock.forward(self, *args, **kwargs)

    return subclass(relay_class, stock, stock, {"__call__": call, "forward": forward})
