"""Checks that run the model in this process: equality with the source, the equalities of n, and the ablation."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from surgery.anatomy import Anatomy
from surgery.loading import operation_modules, operation_of, operations_off
from surgery.operations import OPERATIONS, Operation
from surgery.operations.check import CheckedModel
from surgery.verification.checks import STARTS_AS_SOURCE, Check, bounded
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
# A multiplier is a scale times the logarithm of a whole number; vectorised loops differ in its last place.
MULTIPLIER_BOUND = 1e-6
MULTIPLIER_TOKENS = 64


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
    """The converted model gives the logits of the source, with operations off and, for an identity start, on.

    Args:
        model: the converted model.
        tokens: ``(1, length)``.
        source_logits: of the source on these tokens.
        plan: of the conversion.
        trained: the run that trained the weights, or None.
        wanted: the requested number of tokens, which may exceed the positions of the model.
    """
    off_name, on_name = "operation off = source", STARTS_AS_SOURCE
    if source_logits is None:
        reason = "needs the source: pass --against"
        return [Check(off_name, "skipped", reason), Check(on_name, "skipped", reason)]
    if trained is not None:
        reason = f"the weights were trained ({trained})"
        return [Check(off_name, "skipped", reason), Check(on_name, "skipped", reason)]
    with operations_off(model):
        off = (plain_logits(model, tokens) - source_logits).abs().max().item()
    # A query with n visible keys is not affected by later tokens.
    length = min(tokens.shape[1], identity_length(plan))
    short = f" (of {wanted}; the model has no more positions)" if tokens.shape[1] < wanted else ""
    checks = [bounded(off_name, off, 0.0, f"{tokens.shape[1]} tokens{short}: greatest logit difference")]
    names = [options["name"] for options in plan["operations"]]
    in_config = [name for name in names if OPERATIONS[name].in_config_alone]
    identity = [stated for name, stated in zip(names, plan["identity"], strict=True) if name not in in_config]
    if not identity:
        return checks  # an operation in config.json alone has its own checks
    if in_config:
        on_name += f", {' and '.join(OPERATIONS[name].title for name in in_config)} apart"
        with operations_off(model, keep=in_config):
            source_logits = plain_logits(model, tokens)
    on = (plain_logits(model, tokens) - source_logits)[:, :length].abs().max().item()
    if not all(identity):
        detail = f"this form does not start as the source; greatest logit difference {on:.3g}"
        checks.append(Check(on_name, "skipped", detail, on))
    elif not at_start(model, plan):
        checks.append(Check(on_name, "skipped", f"the parameters were trained; greatest logit difference {on:.3g}", on))
    else:
        checks.append(bounded(on_name, on, 0.0, f"{length} tokens: greatest logit difference"))
    return checks


def identity_length(plan: Mapping[str, Any]) -> int:
    """The greatest n up to which every operation of the plan that starts as the identity does so."""
    limits = (stated.removeprefix("n <= ") for stated in plan["identity"] if stated)
    return min((int(limit) for limit in limits if limit.isdecimal()), default=2**31)


def presentation_checks(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    breaks: Mapping[str, str],
    on_progress: Callable[[str], None] | None = None,
    *,
    measures_source: bool = True,
) -> list[Check]:
    """The equalities of n on the real weights, with scales moved at random so that none holds trivially.

    First the multipliers themselves, which no rounding reaches: they must be equal. Then the logits. On real weights
    the untouched model itself differs a little between presentations (rounding), so their bound is 1e-4, or twice
    what the same presentation differs by with the operation off, whichever is greater. Where that does not suffice
    the rounding of the operated model is measured, since the ``paper`` form flattens the first tokens and so
    makes a model that rounding moves far more than it moves the source. A quantized model cannot be run in float64
    for that: there the greatest of its own differences stands for its rounding.

    Some families' own models are known to differ between presentations. Their logits are no proof about n, so a
    difference above the bounds is skipped with the reason, if the multipliers, or n itself, are equal.

    Args:
        model: the converted model.
        tokens: ``(1, length)``.
        breaks: presentations in which the family's own model differs, with the reason.
        on_progress: called with the name of each presentation before it runs.
        measures_source: measure the differences with the operation off too where no bound needs them.
    """
    try:
        with randomized(model):
            # First: it names the presentation that a model of an unverified family cannot run.
            found = presentation_differences(model, tokens, on_progress)
            checks = multiplier_checks(model, tokens[:, :MULTIPLIER_TOKENS], on_progress)
        without = dict.fromkeys(found, 0.0)
        if measures_source or not all(value <= EQUALITY_BOUND for value in found.values()):
            with operations_off(model):
                without = presentation_differences(model, tokens, on_progress)
    except PresentationError as error:  # a family that was converted unverified may be of such a kind
        return [Check(f"n: {error.name}", "failed", error.detail)]
    n_agrees = bool(checks) and all(check.status == "passed" for check in checks)
    bounds = {name: max(EQUALITY_BOUND, 2 * without[name]) for name in found}
    details = dict.fromkeys(found, "greatest logit difference")
    if any(found[name] > bounds[name] for name in found):
        is_quantized = getattr(model, "hf_quantizer", None) is not None
        with randomized(model):
            rounding = max(without.values()) if is_quantized else rounding_error(model, tokens)
        for name in found:
            if found[name] > bounds[name]:
                bounds[name] = max(bounds[name], 2 * rounding)
                details[name] = f"rounding alone moves a logit by {rounding:.3g}; {details[name]}"
    for name, value in found.items():
        if name in breaks and n_agrees and without[name] > EQUALITY_BOUND and value > bounds[name]:
            own = f"the family's own model differs too, by {without[name]:.3g}: {breaks[name]}"
            checks.append(Check(f"n: {name}", "skipped", own, value))
        else:
            checks.append(bounded(f"n: {name}", value, bounds[name], details[name]))
    return checks


def multiplier_checks(
    model: PreTrainedModel, tokens: torch.Tensor, on_progress: Callable[[str], None] | None = None
) -> list[Check]:
    """The query multipliers of every layer, head and position are the same in every presentation.

    Where no operation multiplies queries, n itself is compared in every operated layer.
    """
    modules = operation_modules(model)
    if not modules:
        return []
    multiplies = any(OPERATIONS[operation_of(path)].multiplies_queries for path in modules)
    asked, of_what = (Multipliers(model), "a multiplier") if multiplies else (VisibleKeys(model), "n")
    differences = presentation_differences(asked, tokens, on_progress)
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
    """Changing the learned parameters of any one layer changes the logits."""
    name = "ablation"
    learned = {path: module for path, module in operation_modules(model).items() if list(module.parameters())}
    if not plan["tensors"]:
        return []
    before = plain_logits(model, tokens)
    least, dead = float("inf"), []
    for path, module in learned.items():
        if on_progress is not None:
            on_progress(path)
        moved = _effect(model, tokens, OPERATIONS[operation_of(path)], module, before)
        least = min(least, moved)
        if not moved > 0.0:
            dead.append(path)
    if dead or not learned:
        return [
            Check(
                name,
                "failed",
                f"parameters without an effect on the logits in {len(dead)} layers; the first is {dead[:1]}",
                least,
            )
        ]
    detail = f"each of {len(learned)} layers changes the logits, the least by {least:.3g}"
    return [Check(name, "passed", detail, least)]


def _effect(
    model: PreTrainedModel, tokens: torch.Tensor, operation: Operation, module: Any, before: torch.Tensor
) -> float:
    """The greatest change of a logit while one learned parameter of a layer has other values."""
    import torch

    parameter, values = operation.effective_values(module)
    kept = parameter.detach().clone()
    moved = 0.0
    for value in values:
        with torch.no_grad():
            parameter.copy_(torch.as_tensor(value).expand_as(parameter))
            moved = max(moved, (plain_logits(model, tokens) - before).abs().max().item())
            parameter.copy_(kept)
    return moved


def own_checks(model: PreTrainedModel, tokens: torch.Tensor, plan: Mapping[str, Any], anatomy: Anatomy) -> list[Check]:
    """The checks that the operations bring themselves.

    Args:
        model: converted, float32, in evaluation mode.
        tokens: ``(1, length)``.
        plan: of the conversion.
        anatomy: read from the converted config.json.
    """

    def logits(on: Collection[str] | None = None) -> torch.Tensor:
        if on is None:
            return plain_logits(model, tokens)
        with operations_off(model, keep=on):
            return plain_logits(model, tokens)

    names = [str(options["name"]) for options in plan["operations"]]
    checks = []
    for name, options in zip(names, plan["operations"], strict=True):
        modules = {path: module for path, module in operation_modules(model).items() if operation_of(path) == name}
        others = tuple(other for other in names if other != name)
        checked = CheckedModel(model, anatomy, modules, others, logits)
        operation = OPERATIONS[name]
        checks += operation.checks(checked, operation.options.model_validate(options))
    return checks
