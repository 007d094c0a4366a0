"""The equalities of n: the model gives the same logits in whatever way a sequence is presented.

n is the number of keys that a query may attend to. It has to come out the same with padding on either side, with a
cache, in a packed row, in a batch, and with any attention backend.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

from surgery.errors import SurgeryError
from surgery.loading import operation_modules, operation_of
from surgery.loading.caches import cache_of, named, with_cache
from surgery.operations import OPERATIONS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    Model: TypeAlias = PreTrainedModel | "Multipliers"

# Random offsets make the equalities non-trivial: at its start value a multiplier may be 1 everywhere.
RANDOM_SPREAD = 0.08
DECODED_TOKENS = 8
# Slots of padding before a row, or after it.
PADDING = 7


@contextmanager
def randomized(model: torch.nn.Module, spread: float = RANDOM_SPREAD, seed: int = 0) -> Iterator[None]:
    """Every operation parameter moved by its own random amount, uniform within ``spread``; put back afterwards.

    A parameter with a range in ``Operation.test_ranges`` is drawn from there; ``Operation.constants`` stay.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    parameters = [
        (parameter, operation.test_ranges.get(name))
        for path, module in operation_modules(model).items()
        for operation in (OPERATIONS[operation_of(path)],)
        for name, parameter in module.named_parameters(recurse=False)
        if name not in operation.constants
    ]
    before = [parameter.detach().clone() for parameter, _ in parameters]
    try:
        with torch.no_grad():
            for parameter, test_range in parameters:
                noise = torch.rand(parameter.shape, generator=generator).to(parameter)
                if test_range is not None:
                    low, high = test_range
                    parameter.copy_(low + (high - low) * noise)
                else:
                    parameter.add_((2 * noise - 1) * spread)
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), value in zip(parameters, before, strict=True):
                parameter.copy_(value)


class Multipliers:
    """Called like the model, returns the multipliers of the queries in place of the logits.

    The multipliers depend on n and the learned parameters alone, so rounding in other layers does not reach them: a
    wrong n shows, however small its effect on the logits.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._modules: list[Any] = [
            module
            for path, module in operation_modules(model).items()
            if OPERATIONS[operation_of(path)].multiplies_queries
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **kwargs: Any) -> SimpleNamespace:
        """The model's call; ``logits`` holds the multipliers, ``(batch, queries, operated layers * heads)``."""
        import torch

        found: dict[torch.nn.Module, torch.Tensor] = {}
        hooks = [module.register_forward_hook(lambda m, _, out: found.update({m: out})) for module in self._modules]
        try:
            answer = self._model(**kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        batch, queries = kwargs["input_ids"].shape
        # A module that was not called multiplies by 1.
        nothing = torch.ones(1, 1, queries, 1, device=self._model.device)
        rows = [found.get(module, nothing.expand(1, module.num_heads, -1, -1)) for module in self._modules]
        rows = [row.squeeze(-1).transpose(1, 2).expand(batch, -1, -1) for row in rows]
        return SimpleNamespace(logits=torch.cat(rows, dim=-1), **named(cache_of(answer)))


class VisibleKeys(Multipliers):
    """As its base, but returns n of the operated layers: ``(batch, queries, operated layers)``."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        paths = dict.fromkeys(path.rpartition(".")[0] for path in operation_modules(model))
        self._modules = [model.get_submodule(path) for path in paths]

    def __call__(self, **kwargs: Any) -> SimpleNamespace:
        """The model's call; ``logits`` holds n."""
        import torch

        from surgery.runtime import VISIBLE_KEYS

        found: dict[torch.nn.Module, torch.Tensor] = {}

        def keep(module: Any, _: Any, given: dict[str, Any]) -> None:
            # Layers without the keyword read it from the module.
            found[module] = given[VISIBLE_KEYS] if VISIBLE_KEYS in given else getattr(module, VISIBLE_KEYS)

        hooks = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in self._modules]
        try:
            answer = self._model(**kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        batch = len(kwargs["input_ids"])
        rows = [found[module].expand(batch, -1).unsqueeze(-1).float() for module in self._modules]
        return SimpleNamespace(logits=torch.cat(rows, dim=-1), **named(cache_of(answer)))


class PresentationError(SurgeryError):
    """The model's own code cannot run in a presentation."""

    def __init__(self, name: str, error: Exception) -> None:
        self.name, self.detail = (
            name,
            f"the model's code cannot run in this presentation: {type(error).__name__}: {error}",
        )
        super().__init__(f"{name}: {self.detail}")


def presentation_differences(
    model: Model,
    tokens: torch.Tensor,
    on_progress: Callable[[str], None] | None = None,
    without: Collection[str] = (),
) -> dict[str, float]:
    """Greatest logit difference of each presentation from the plain one.

    Args:
        model: in evaluation mode, float32; or its :class:`Multipliers`, whose differences are then given.
        tokens: ``(1, length)``, at least 16 tokens.
        on_progress: called with the name of each presentation before it runs.
        without: presentations that the model does not have.

    Returns:
        Name of the presentation -> greatest absolute difference over all real positions.

    Raises:
        PresentationError: the model does not support the presentation; for example, it has a cache of its own kind.
    """
    import torch

    results: dict[str, float] = {}
    with torch.no_grad():
        plain = _logits(model, tokens)
        for name, present in PRESENTATIONS.items():
            if name in without:
                continue
            if on_progress is not None:
                on_progress(name)
            try:
                found = present(model, tokens, plain)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                raise PresentationError(name, error) from error
            if found is not None:
                results[name] = found
    return results


def _logits(model: Model, tokens: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return model(input_ids=tokens, use_cache=False, **kwargs).logits.float()


def _greatest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def _padding(model: Model) -> int:
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    return padding if isinstance(padding, int) else 0


def _with_cache(model: Model, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
    """Prefill, then the last tokens one at a time."""
    import torch

    length = tokens.shape[1]
    cut = length - DECODED_TOKENS
    out = model(input_ids=tokens[:, :cut], **with_cache(cache))
    pieces = [out.logits.float()]
    for position in range(cut, length):
        out = model(input_ids=tokens[:, position : position + 1], **with_cache(cache))
        pieces.append(out.logits.float())
    return torch.cat(pieces, dim=1)


def _token_by_token(model: Model, tokens: torch.Tensor, plain: torch.Tensor) -> float:
    from transformers import DynamicCache

    return _greatest(_with_cache(model, tokens, DynamicCache(config=model.config)), plain)


def _static_cache(model: Model, tokens: torch.Tensor, plain: torch.Tensor) -> float:
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=tokens.shape[1] + 8)
    return _greatest(_with_cache(model, tokens, cache), plain)


def _padded(model: Model, tokens: torch.Tensor, left: int, right: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    row = torch.nn.functional.pad(tokens, (left, right), value=_padding(model))
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (left, right), value=0)
    return row, mask


def _left_padded(model: Model, tokens: torch.Tensor, plain: torch.Tensor) -> float:
    row, mask = _padded(model, tokens, PADDING, 0)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return _greatest(_logits(model, row, attention_mask=mask, position_ids=positions)[:, PADDING:], plain)


def _left_padded_plainly(model: Model, tokens: torch.Tensor, plain: torch.Tensor) -> float:
    row, mask = _padded(model, tokens, PADDING, 0)
    return _greatest(_logits(model, row, attention_mask=mask)[:, PADDING:], plain)


def _left_padded_cached(model: Model, tokens: torch.Tensor, plain: torch.Tensor) -> float:
    """What ``generate`` does with a padded prompt: prefill, then one token with the longer mask."""
    row, mask = _padded(model, tokens, PADDING, 0)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model(input_ids=row[:, :-1], attention_mask=mask[:, :-1], position_ids=positions[:, :-1], use_cache=True)
    last = model(
        input_ids=row[:, -1:],
        attention_mask=mask,
        position_ids=positions[:, -1:],
        **with_cache(cache_of(out)),
    )
    return _greatest(last.logits.float(), plain[:, -1:])


def _right_padded(model: Model, tokens: torch.Tensor, plain: torch.Tensor) -> float:
    row, mask = _padded(model, tokens, 0, PADDING)
    return _greatest(_logits(model, row, attention_mask=mask)[:, :-PADDING], plain)


def _packed(model: Model, tokens: torch.Tensor, plain: torch.Tensor) -> float:
    """Two documents in one row, with position_ids that restart, against the second one alone."""
    import torch

    length = tokens.shape[1]
    first = tokens[:, : length // 3].flip(-1)
    row = torch.cat([first, tokens], dim=1)
    positions = torch.cat([torch.arange(first.shape[1]), torch.arange(length)])[None].to(tokens.device)
    return _greatest(_logits(model, row, position_ids=positions)[:, first.shape[1] :], plain)


def _batch(model: Model, tokens: torch.Tensor, plain: torch.Tensor) -> float:
    """Two rows of unequal length in one batch; each keeps its own count."""
    import torch

    short = tokens[:, : tokens.shape[1] // 2]
    row, mask = _padded(model, short, tokens.shape[1] - short.shape[1], 0)
    rows = torch.cat([tokens, row])
    masks = torch.cat([torch.ones_like(tokens), mask])
    positions = (masks.cumsum(-1) - 1).clamp(min=0)
    out = _logits(model, rows, attention_mask=masks, position_ids=positions)
    # Causality: the short row must agree with the beginning of the long one.
    return max(_greatest(out[:1], plain), _greatest(out[1:, -short.shape[1] :], plain[:, : short.shape[1]]))


def _other_backend(model: Model, tokens: torch.Tensor, plain: torch.Tensor) -> float | None:
    before = model.config._attn_implementation
    other = "eager" if before == "sdpa" else "sdpa"
    if other == "sdpa" and not model._supports_sdpa:
        return None
    try:
        model.set_attn_implementation(other)
        return _greatest(_logits(model, tokens), plain)
    finally:
        model.set_attn_implementation(before)


PRESENTATIONS: dict[str, Callable[[Model, torch.Tensor, torch.Tensor], float | None]] = {
    "token by token": _token_by_token,
    "static cache": _static_cache,
    "left-padded": _left_padded,
    "left-padded, no position_ids": _left_padded_plainly,
    "left-padded with a cache": _left_padded_cached,
    "right-padded": _right_padded,
    "packed": _packed,
    "batch of unequal rows": _batch,
    "sdpa = eager": _other_backend,
}
