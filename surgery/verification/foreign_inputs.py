"""n where mask, cache or positions come from somebody else: a hole in the mask, a thinned cache, pages.

The plain model is no measure here: what a query sees is another set of keys. The measure is the mask that each layer
gets, see `shown_keys.py`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeAlias

from surgery.loading import operation_modules, operation_of
from surgery.loading.caches import cache_of, new_cache, with_cache
from surgery.operations import OPERATIONS
from surgery.verification.behaviour import EQUALITY_BOUND
from surgery.verification.checks import Check, bounded
from surgery.verification.presentations import DECODED_TOKENS, PADDING
from surgery.verification.shown_keys import observed, reference

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# A greedy token may lie this far below the greatest logit: rounding differs between pages and rows.
TOKEN_BOUND = 1e-2
PAGED_TOKENS = 3
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
Present: TypeAlias = Callable[..., Any]
# Errors of a family's own code, which may not support a presentation.
_OWN = (AttributeError, IndexError, KeyError, TypeError, ValueError, NotImplementedError, RuntimeError)


class NotPresentedError(Exception):
    """The installed transformers has no such presentation for this model."""


def hole(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Padding in the middle of a row, as after a shorter turn of a batch: first without a cache, then with one.

    Returns:
        Logits of the real positions, ``(positions, vocabulary)``.
    """
    import torch

    middle, length = tokens.shape[1] // 2, tokens.shape[1] + PADDING
    row = torch.cat([tokens[:, :middle], tokens[:, :PADDING], tokens[:, middle:]], dim=1)
    mask = torch.ones_like(row)
    mask[:, middle : middle + PADDING] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    plain = model(input_ids=row, attention_mask=mask, use_cache=False).logits  # positions that count the hole
    cut = length - DECODED_TOKENS
    first = model(input_ids=row[:, :cut], attention_mask=mask[:, :cut], position_ids=positions[:, :cut], use_cache=True)
    second = model(
        input_ids=row[:, cut:], attention_mask=mask, position_ids=positions[:, cut:], **with_cache(cache_of(first))
    ).logits
    return torch.cat([plain[mask.bool()], second[0]])


def thinned_cache(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Keep every third key of a cache, as cache compression does, then run tokens at their true positions.

    Returns:
        Logits of these tokens, with a mask and without, ``(2 x tokens, vocabulary)``.
    """
    import torch
    from transformers.cache_utils import DynamicCache, DynamicLayer

    past, after = tokens.shape[1] - DECODED_TOKENS, DECODED_TOKENS
    positions = torch.arange(past, past + after, device=tokens.device)[None]
    kept = torch.arange(0, past, 3, device=tokens.device)
    pieces = []
    # Without a config every layer keeps all keys; layers without attention need the config.
    hybrid = not _ATTENTION.issuperset(getattr(model.config.get_text_config(), "layer_types", None) or ())
    full: Any = new_cache(model) if hybrid else DynamicCache()
    model(input_ids=tokens[:, :past], **with_cache(full))
    for mask in (None, torch.ones(1, len(kept) + after, dtype=torch.long, device=tokens.device)):
        cache = deepcopy(full)
        for layer in cache.layers:
            if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
        out = model(input_ids=tokens[:, past:], attention_mask=mask, position_ids=positions, **with_cache(cache))
        pieces.append(out.logits[0])
    return torch.cat(pieces)


def pages(model: Any, tokens: torch.Tensor) -> list[tuple[torch.Tensor, int]]:
    """Continuous batching of two requests, whose keys lie in pages.

    Returns:
        Each row with its greedy tokens, ``(1, tokens)``, and the length of its prompt.
    """
    import torch
    from transformers import GenerationConfig
    from transformers.generation import configuration_utils

    if not hasattr(configuration_utils, "ContinuousBatchingConfig") or not hasattr(model, "generate_batch"):
        raise NotPresentedError("this version of transformers has no continuous batching that can be limited in memory")
    if "chunked_attention" in (getattr(model.config.get_text_config(), "layer_types", None) or ()):
        raise NotPresentedError("transformers has no continuous batching for chunked attention")
    prompts = [tokens[0, :length].tolist() for length in (tokens.shape[1] // 2, 5)]
    with _no_slow_collection(), redirect_stdout(sys.stderr):  # transformers prints when a request fails
        found = model.generate_batch(
            prompts,
            generation_config=GenerationConfig(
                max_new_tokens=PAGED_TOKENS, min_new_tokens=PAGED_TOKENS, do_sample=False, pad_token_id=0
            ),
            # The default takes most of the machine's memory.
            continuous_batching_config=configuration_utils.ContinuousBatchingConfig(
                num_blocks=16, block_size=32, max_batch_tokens=128
            ),
            warmup=False,
        )
    outputs = list(found.values())
    if len(outputs) != len(prompts) or any(output.error is not None for output in outputs):
        raise RuntimeError(next((output.error for output in outputs if output.error), "a request was lost"))
    rows = [prompt + list(output.generated_tokens) for prompt, output in zip(prompts, outputs, strict=True)]
    return [(torch.tensor([row], device=tokens.device), len(prompt)) for row, prompt in zip(rows, prompts, strict=True)]


@contextmanager
def _no_slow_collection() -> Iterator[None]:
    """transformers collects garbage twice at the end of continuous batching: a second each with its modules loaded."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _from_reference(present: Present, model: PreTrainedModel, tokens: torch.Tensor, found: Any) -> float:
    """Greatest difference of a logit from the run whose n is counted from the masks."""
    with reference(model):
        expected: torch.Tensor = present(model, tokens)
    return (found - expected).abs().max().item()


def _below_greatest(present: Present, model: PreTrainedModel, tokens: torch.Tensor, found: Any) -> float:
    """How far the logit of a greedy token lies below the greatest one, in a plain pass over the same row.

    Raises:
        NotPresentedError: it does so without the travelling code too.
    """
    below = _greatest_gap(model, found)
    if below > TOKEN_BOUND:
        with reference(model):
            own = _greatest_gap(model, present(model, tokens))
        if own > TOKEN_BOUND:
            raise NotPresentedError(
                "the family's own model gives other tokens there: n is what the mask of each layer shows, but a greedy "
                f"token's logit is {own:.3g} below the greatest without the operation's code too"
            )
    return below


def _greatest_gap(model: PreTrainedModel, found: Any) -> float:
    most = 0.0
    for row, prompt in found:
        logits: torch.Tensor = model(input_ids=row[:, :-1], use_cache=False).logits[0, prompt - 1 :]
        chosen = logits.gather(-1, row[0, prompt:, None])[:, 0]
        most = max(most, (logits.amax(-1) - chosen).max().item())
    return most


# How the input is presented, what is measured of it, the bound, and what that is in words.
Presentation: TypeAlias = tuple[Present, Callable[..., float], float, str]

FOREIGN: dict[str, Presentation] = {
    "hole in the mask": (hole, _from_reference, EQUALITY_BOUND, "greatest logit difference"),
    "thinned cache": (thinned_cache, _from_reference, EQUALITY_BOUND, "greatest logit difference"),
    "pages": (pages, _below_greatest, TOKEN_BOUND, "a greedy token's logit is below the greatest by at most"),
}


def foreign_checks(
    model: PreTrainedModel, tokens: torch.Tensor, on_progress: Callable[[str], None] | None = None
) -> list[Check]:
    """n is what the mask of each layer shows, and the logits follow from it.

    What the family's own model cannot run is skipped with its error; what only the converted one cannot run fails.

    Args:
        model: converted, in evaluation mode, float32, with scales moved at random.
        tokens: ``(1, length)``, at least 16 tokens.
        on_progress: called with the name of each presentation before it runs.
    """
    modules = operation_modules(model)
    if not modules:
        return []
    reason = _reason_to_skip(model, modules)
    if reason is not None:
        return [Check(f"n: {name}", "skipped", reason) for name in FOREIGN]
    checks = []
    for name, presentation in FOREIGN.items():
        if on_progress is not None:
            on_progress(name)
        checks.append(_check(model, tokens, f"n: {name}", presentation))
    return checks


def _reason_to_skip(model: PreTrainedModel, modules: dict[str, Any]) -> str | None:
    names = dict.fromkeys(map(operation_of, modules))
    attending = [OPERATIONS[name].title for name in names if not OPERATIONS[name].multiplies_queries]
    if attending:
        return f"{' and '.join(attending)} attends itself, so the mask alone does not say what a query sees"
    backend = str(model.config._attn_implementation)
    if not backend.startswith(("eager", "sdpa")):
        return f"keys are counted from the masks of sdpa and eager, and this is {backend}"
    return None


def _check(model: PreTrainedModel, tokens: torch.Tensor, name: str, presentation: Presentation) -> Check:
    import torch

    present, measure, bound, what = presentation
    with torch.no_grad(), observed(model) as differences:
        try:
            found = present(model, tokens)
        except NotPresentedError as error:
            return Check(name, "skipped", str(error))
        except _OWN as error:
            own = _own_error(present, model, tokens)
            if own is not None:
                return Check(name, "skipped", f"the family's own model cannot run so: {own}")
            return Check(name, "failed", f"the converted model cannot run so, the source can: {_line(error)}")
    if not differences:
        return Check(name, "failed", "no layer with an operation was called")
    if max(differences) > 0:
        return Check(name, "failed", f"n differs from the keys that a layer's mask shows, by up to {max(differences)}")
    try:
        with torch.no_grad():
            value = measure(present, model, tokens, found)
    except NotPresentedError as error:
        return Check(name, "skipped", str(error))
    return bounded(name, value, bound, f"n is what the mask of each layer shows; {what}")


def _own_error(present: Present, model: PreTrainedModel, tokens: torch.Tensor) -> str | None:
    """The error of the same call without the travelling code; None if it runs."""
    try:
        with reference(model):
            present(model, tokens)
    except _OWN as error:
        return _line(error)
    return None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
