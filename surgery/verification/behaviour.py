"""Checks that run the model in this process: identity with the source, equalities of n, and the ablation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from surgery.loading import operation_modules, operations_off
from surgery.verification.checks import Check, bounded
from surgery.verification.presentations import (
    Multipliers,
    PresentationError,
    VisibleKeys,
    presentation_differences,
    randomized,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

EQUALITY_BOUND = 1e-4
# Multipliers are a logarithm of a whole number times a scale: one unit in the last place, as vectorised loops give.
MULTIPLIER_BOUND = 1e-6
MULTIPLIER_TOKENS = 64
# What N becomes where a short text is to show what lies beyond it.
LOWERED_REFERENCE = 2


def plain_logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Logits ``(1, length, vocabulary)`` of one plain forward pass, on the CPU, float32."""
    import torch

    with torch.no_grad():
        return model(input_ids=tokens.to(model.device), use_cache=False).logits.float().cpu()


def at_start(model: PreTrainedModel, plan: Mapping[str, Any]) -> bool:
    """Whether every parameter of the operations still has the value that the conversion gave it."""
    parameters = dict(model.named_parameters())
    return all(
        bool((parameters[entry["name"]] == parameters[entry["name"]].new_tensor(entry["start"])).all())
        for entry in plan["tensors"]
        if entry["name"] in parameters
    )


def identity_checks(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    source_logits: torch.Tensor | None,
    plan: Mapping[str, Any],
    trained: str | None,
    wanted: int,
) -> list[Check]:
    """The operated model against the source: off it must be the source, and at an identity start on as well.

    Args:
        model: the operated one.
        tokens: ``(1, length)``.
        source_logits: of the source on these tokens.
        plan: of the conversion.
        trained: what the weights were trained by since, if they were.
        wanted: how many tokens were asked for, which may be more than the model has positions for.
    """
    off_name, on_name = "operation off = source", "starts as the source"
    if source_logits is None:
        reason = "give the source with --against"
        return [Check(off_name, "skipped", reason), Check(on_name, "skipped", reason)]
    if trained is not None:
        reason = f"the weights were trained ({trained})"
        return [Check(off_name, "skipped", reason), Check(on_name, "skipped", reason)]
    with operations_off(model):
        off = (plain_logits(model, tokens) - source_logits).abs().max().item()
    # Up to a query's n, nothing that follows counts.
    length = min(tokens.shape[1], identity_length(plan))
    short = f" (of {wanted}: it has positions for no more)" if tokens.shape[1] < wanted else ""
    checks = [bounded(off_name, off, 0.0, f"{tokens.shape[1]} tokens{short}: greatest logit difference")]
    names = [options["name"] for options in plan["operations"]]
    identity = [stated for name, stated in zip(names, plan["identity"], strict=True) if name != "rope"]
    if not identity:
        return checks  # RoPE has checks of its own
    if "rope" in names:
        on_name += ", RoPE apart"
        with operations_off(model, rope=False):
            source_logits = plain_logits(model, tokens)
    on = (plain_logits(model, tokens) - source_logits)[:, :length].abs().max().item()
    if not all(identity):
        detail = f"the form is not the identity at its start; greatest logit difference {on:.3g}"
        checks.append(Check(on_name, "skipped", detail, on))
    elif not at_start(model, plan):
        checks.append(Check(on_name, "skipped", f"the scales were trained; greatest logit difference {on:.3g}", on))
    else:
        checks.append(bounded(on_name, on, 0.0, f"{length} tokens: greatest logit difference"))
    return checks


def identity_length(plan: Mapping[str, Any]) -> int:
    """The greatest n up to which every operation of the plan starts as the identity, where they are that at all."""
    limits = (stated.removeprefix("n <= ") for stated in plan["identity"] if stated)
    return min((int(limit) for limit in limits if limit.isdecimal()), default=2**31)


def presentation_checks(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    breaks: Mapping[str, str],
    on_progress: Callable[[str], None] | None = None,
) -> list[Check]:
    """The equalities of n on the real weights, with scales moved at random so that none holds trivially.

    First the multipliers themselves, which no rounding reaches: they must be equal. Then the logits. On real weights
    the untouched model itself differs a little between presentations (rounding), so their bound is 1e-4, or twice
    what the same presentation differs by with the operation off, whichever is greater. Where that does not suffice
    the rounding of the operated model is measured, since the ``paper`` form flattens the first tokens and so
    makes a model that rounding moves far more than it moves the source. A quantized model cannot be run in float64
    for that: there the greatest of its own differences stands for its rounding.

    Where the family's own model is known to say something else, and does, its logits say nothing of n: what differs by
    more than those bounds there is skipped with the reason, if the multipliers, or n itself, are the same.

    Args:
        model: the operated one.
        tokens: ``(1, length)``.
        breaks: of the family: in which presentations its own model differs, and why.
        on_progress: told the name of each presentation before it runs.
    """
    with operations_off(model):
        try:
            without = presentation_differences(model, tokens, on_progress)
        except PresentationError as error:  # a family that was converted unverified may be of such a kind
            return [Check(f"n: {error.name}", "failed", error.detail)]
    with randomized(model):
        checks = multiplier_checks(model, tokens[:, :MULTIPLIER_TOKENS])
        n_agrees = bool(checks) and all(check.status == "passed" for check in checks)
        found = presentation_differences(model, tokens, on_progress)
        bounds = {name: max(EQUALITY_BOUND, 2 * without[name]) for name in found}
        details = dict.fromkeys(found, "greatest logit difference")
        if any(found[name] > bounds[name] for name in found):
            is_quantized = getattr(model, "hf_quantizer", None) is not None
            rounding = max(without.values()) if is_quantized else rounding_error(model, tokens)
            for name in found:
                if found[name] > bounds[name]:
                    bounds[name] = max(bounds[name], 2 * rounding)
                    details[name] = f"rounding alone moves a logit by {rounding:.3g}; {details[name]}"
    for name, value in found.items():
        if name in breaks and n_agrees and without[name] > EQUALITY_BOUND and value > bounds[name]:
            own = f"the family's own model says something else by {without[name]:.3g}: {breaks[name]}"
            checks.append(Check(f"n: {name}", "skipped", own, value))
        else:
            checks.append(bounded(f"n: {name}", value, bounds[name], details[name]))
    return checks


def multiplier_checks(model: PreTrainedModel, tokens: torch.Tensor) -> list[Check]:
    """The query multipliers of every layer, head and position are the same in every presentation.

    A model without any is asked for n itself, in every layer that was operated on.
    """
    modules = operation_modules(model)
    if not modules:
        return []
    multiplies = any(path.endswith(".ssmax") for path in modules)
    asked, of_what = (Multipliers(model), "a multiplier") if multiplies else (VisibleKeys(model), "n")
    differences = presentation_differences(asked, tokens)
    worst = max(differences, key=lambda name: (math.isnan(differences[name]), differences[name]))
    what = f"{len(differences)} presentations, greatest difference of {of_what} ({worst})"
    name = "n: multipliers" if multiplies else "n: visible keys"
    return [bounded(name, differences[worst], MULTIPLIER_BOUND, what)]


def rounding_error(model: PreTrainedModel, tokens: torch.Tensor) -> float:
    """How far float32 rounding moves a logit: the greatest difference from the same forward pass in float64."""
    import torch

    single, device = plain_logits(model, tokens), model.device

    def cast(device: torch.device, dtype: torch.dtype) -> None:
        # Not by Module.to, which makes real numbers of complex ones, as the positions of Llama 4's images are.
        model._apply(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    try:
        # Exact both ways. Apple's GPUs have no float64.
        cast(torch.device("cpu") if device.type == "mps" else device, torch.float64)
        with torch.no_grad():
            double = model(input_ids=tokens.to(model.device), use_cache=False).logits.cpu()
    finally:
        cast(device, torch.float32)
    return (single.double() - double).abs().max().item()


def ablation_checks(
    model: PreTrainedModel, tokens: torch.Tensor, plan: Mapping[str, Any], on_progress: Callable[[str], None] | None
) -> list[Check]:
    """Changing any one layer's parameters changes the logits; without any, on differs from off where n is beyond N."""
    name = "ablation"
    learned = {path: module for path, module in operation_modules(model).items() if list(module.parameters())}
    checks = []
    if any(options.get("form") == "logn" for options in plan["operations"]):
        checks.append(_beyond_reference(model, tokens))
    if not plan["tensors"]:
        return checks
    before = plain_logits(model, tokens)
    least, dead = float("inf"), []
    for path, module in learned.items():
        if on_progress is not None:
            on_progress(path)
        moved = max((plain_logits(model, tokens) - before).abs().max().item() for _ in _changed(module))
        least = min(least, moved)
        if not moved > 0.0:
            dead.append(path)
    if dead or not learned:
        return [*checks, Check(name, "failed", f"{len(dead)} layers change nothing, first {dead[:1]}", least)]
    detail = f"each of {len(learned)} layers changes the logits, the least by {least:.3g}"
    return [*checks, Check(name, "passed", detail, least)]


def _changed(module: Any) -> Iterator[None]:
    """One layer's operation with another parameter, for as long as each step of the iteration lasts.

    A threshold is set so high that what can be rejected is, and so low that nothing is: one of the two is a change.
    """
    import torch

    parameter = module.scale if hasattr(module, "scale") else module.threshold
    before = parameter.detach().clone()
    for value in (before + 0.1,) if hasattr(module, "scale") else (0.95, -3.0):
        with torch.no_grad():
            parameter.copy_(torch.as_tensor(value).expand_as(parameter))
            yield
            parameter.copy_(before)


def _beyond_reference(model: PreTrainedModel, tokens: torch.Tensor) -> Check:
    """``logn`` has no parameter to change, and does something beyond N alone: N is lowered, since the text is short."""
    modules: list[Any] = [one for one in operation_modules(model).values() if getattr(one, "form", None) == "logn"]
    before = [module.log_reference for module in modules]
    try:
        for module in modules:
            module.log_reference = math.log(LOWERED_REFERENCE)
        on = plain_logits(model, tokens)
    finally:
        for module, value in zip(modules, before, strict=True):
            module.log_reference = value
    with operations_off(model, rope=False):
        off = plain_logits(model, tokens)
    moved = (on - off).abs().max().item()
    detail = f"with N = {LOWERED_REFERENCE} in place of {math.exp(max(before)):.0f}, on differs from off by {moved:.3g}"
    return Check("ablation", "passed" if moved > 0.0 else "failed", detail, moved)
