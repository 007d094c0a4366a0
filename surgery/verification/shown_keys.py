"""n as the masks show it: counted where a family's own attention is called, by code that does not travel.

Two runs of the same call. In :func:`observed` the travelling code works as always, and each n that an operation is
given is compared with the mask that the layer's attention gets. In :func:`reference` the travelling code is left out:
the query is multiplied here, for n of the mask, and the output.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from surgery.loading import operation_modules

if TYPE_CHECKING:
    import torch

    Around = Callable[[str, Callable[..., Any]], Callable[..., Any]]

BACKENDS = "ALL_ATTENTION_FUNCTIONS"


def shown_keys(query: torch.Tensor, key: torch.Tensor, mask: Any) -> torch.Tensor:
    """Keys that a mask shows to each query, ``(batch or 1, queries)``; 0 where it shows none (padding).

    Args:
        query, key: ``(batch, heads, queries or keys, head_dim)``.
        mask: ``(batch or 1, 1, queries, keys)``, boolean or added to the scores; None if sdpa is causal by itself: from
            the first key on, or all keys for one query.

    Raises:
        TypeError: the mask is of another kind.
    """
    import torch

    queries, keys = query.shape[2], key.shape[2]
    if mask is None:
        shown = torch.arange(1, queries + 1, device=query.device) if queries > 1 else torch.tensor([keys])
        return shown.to(query.device)[None]
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        raise TypeError(f"n cannot be counted from a mask of type {type(mask).__name__}")
    allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return allowed[:, 0, -queries:].sum(-1)


@contextmanager
def observed(model: Any) -> Iterator[list[int]]:
    """The model as it is; the list gets, for each call of a layer, the greatest difference of its n from the mask's."""
    given: dict[Any, Any] = {}
    differences: list[int] = []
    by_parent = _operations(model)

    def around(_: str, backend: Callable[..., Any]) -> Callable[..., Any]:
        def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
            if module in given:
                shown = shown_keys(query, key, attention_mask)
                n = given.pop(module).expand(shown.shape[0], -1)
                difference = (n - shown).abs().where(shown > 0, 0)
                differences.append(int(difference.max()))
            return backend(module, query, key, value, attention_mask, **options)

        return attend

    hooks = [
        operation.register_forward_pre_hook(lambda _, args, parent=parent: given.update({parent: args[0]}))
        for parent, operations in by_parent.items()
        for operation in operations
    ]
    try:
        with _backends(by_parent, around, keep=True):
            yield differences
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def reference(model: Any) -> Iterator[None]:
    """The model without the travelling code: the query is multiplied for n of the mask, then the backend attends."""
    from surgery.runtime import VISIBLE_KEYS

    by_parent = _operations(model)

    def around(_: str, backend: Callable[..., Any]) -> Callable[..., Any]:
        def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
            options.pop(VISIBLE_KEYS, None)
            operations = by_parent.get(module, [])
            if operations:
                n = shown_keys(query, key, attention_mask).clamp(min=1).float()
                for operation in operations:
                    query = (query * operation(n)).to(query.dtype)
            output, weights = backend(module, query, key, value, attention_mask, **options)
            for operation in operations:
                output = operation.scale_output(output) if operation.scales_output else output
            return output, weights

        return attend

    counting: list[Any] = [module for module in model.modules() if getattr(module, "surgery_counts", False)]
    try:
        for module in counting:
            module.surgery_counts = False
        with _backends(by_parent, around, keep=False):
            yield
    finally:
        for module in counting:
            module.surgery_counts = True


def _operations(model: Any) -> dict[Any, list[Any]]:
    """Attention module -> the modules of its operations."""
    found: dict[Any, list[Any]] = defaultdict(list)
    for path, operation in operation_modules(model).items():
        found[model.get_submodule(path.rpartition(".")[0])].append(operation)
    return dict(found)


class _Wrapped:
    """Attention backends as transformers has them, each with code around it."""

    def __init__(self, backends: Any, around: Around) -> None:
        self._backends, self._around = backends, around

    def get_interface(self, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        return self._around(name, self._backends.get_interface(name, default))

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self._around(name, self._backends[name])


@contextmanager
def _backends(modules: Any, around: Around, *, keep: bool) -> Iterator[None]:
    """Code around the backends of some attention modules; ``keep`` leaves the travelling code above it in place."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    scopes = {id(scope): scope for scope in map(_scope, {type(module) for module in modules})}
    before = {number: scope[BACKENDS] for number, scope in scopes.items()}
    try:
        for number, scope in scopes.items():
            wrapped = _Wrapped(ALL_ATTENTION_FUNCTIONS, around)
            scope[BACKENDS] = type(before[number])(wrapped) if keep else wrapped
        yield
    finally:
        for number, scope in scopes.items():
            scope[BACKENDS] = before[number]


def _scope(attention: Any) -> dict[str, Any]:
    """The globals in which an attention class looks up its backend: a copy of the family's, with other backends."""
    function = attention.forward
    while BACKENDS not in function.__code__.co_names:
        function = function.__wrapped__
    scope: dict[str, Any] = function.__globals__
    return scope
