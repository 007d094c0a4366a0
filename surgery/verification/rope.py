"""Checks of changed rotary positions: the frequencies that run, and what they do to the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surgery.anatomy import Anatomy, Rope
from surgery.loading import operations_off, rotary_modules
from surgery.operations.rope import RopeChange, RopeOptions, frequencies
from surgery.verification.checks import Check, bounded

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# float32 has 24 bits; theta to a power loses a few more of them.
FREQUENCY_BOUND = 1e-5
FIRST_BOUND = 1e-4


def rope_checks(model: PreTrainedModel, tokens: torch.Tensor, plan: Mapping[str, Any], anatomy: Anatomy) -> list[Check]:
    """None where the plan leaves RoPE alone.

    Args:
        model: converted, float32, in evaluation mode.
        tokens: ``(1, length)``.
        plan: its plan.
        anatomy: read from its config.json.
    """
    options = next((options for options in plan["operations"] if options["name"] == RopeChange.name), None)
    if options is None:
        return []
    return [_frequencies(model, RopeOptions.model_validate(options), anatomy), _effect(model, tokens)]


def expected_frequencies(options: RopeOptions, anatomy: Anatomy) -> dict[str | None, tuple[list[float], float]]:
    """Frequencies and attention factor of each RoPE, from the resolved options and what the source had."""
    before = dict((options.before or {})["rope_parameters"])
    found = {}
    for rope in anatomy.ropes:
        own = Rope(rope.label, rope.layers, before if rope.label is None else before[rope.label], rope.dim)
        changed = not set(rope.layers).isdisjoint(map(int, options.layers))
        found[rope.label] = frequencies(RopeChange().parameters(options, own) if changed else own.parameters, rope.dim)
    return found


def _frequencies(model: PreTrainedModel, options: RopeOptions, anatomy: Anatomy) -> Check:
    """Relative difference of what the loaded model turns by from the definition, computed here in double precision."""
    import torch

    name = "RoPE as planned"
    modules: dict[str, Any] = rotary_modules(model)
    if not modules:
        return Check(name, "failed", "the loaded model has no rotary embedding")
    worst = 0.0
    for label, (wanted, factor) in expected_frequencies(options, anatomy).items():
        prefix = "" if label is None else f"{label}_"
        for module in modules.values():
            own = getattr(module, f"{prefix}inv_freq").double().cpu()
            if len(own) != len(wanted):
                return Check(name, "failed", f"the model turns {2 * len(own)} dimensions, planned {2 * len(wanted)}")
            difference = (own / torch.tensor(wanted, dtype=torch.float64) - 1).abs().max().item()
            worst = max(worst, difference, abs(getattr(module, f"{prefix}attention_scaling") / factor - 1))
    return bounded(name, worst, FREQUENCY_BOUND, "frequencies and attention factor: greatest relative difference")


def _effect(model: PreTrainedModel, tokens: torch.Tensor) -> Check:
    """The first position sees itself alone, so RoPE cannot matter there; elsewhere it must."""
    from surgery.verification.behaviour import plain_logits

    name = "RoPE changes the logits"
    with operations_off(model, rope=False):
        on = plain_logits(model, tokens)
    with operations_off(model):
        moved = (on - plain_logits(model, tokens)).abs()
    first, most = moved[:, 0].max().item(), moved.max().item()
    detail = f"by up to {most:.3g}; by {first:.3g} at the first position, which sees itself alone"
    return Check(name, "passed" if most > FIRST_BOUND >= first else "failed", detail, most)
