"""Checks of changed rotary positions: the frequencies of the loaded model, and their effect on the logits."""

from __future__ import annotations

from typing import Any

from surgery.anatomy import Anatomy, Rope
from surgery.operations.check import Check, CheckedModel, bounded
from surgery.operations.rope.frequencies import changed_parameters, frequencies
from surgery.operations.rope.modules import rotary_modules
from surgery.operations.rope.options import RopeOptions

# float32 has 24 bits; a power of theta loses a few of them.
FREQUENCY_BOUND = 1e-5
FIRST_POSITION_BOUND = 1e-4


def expected_frequencies(options: RopeOptions, anatomy: Anatomy) -> dict[str | None, tuple[list[float], float]]:
    """Frequencies and attention factor of each RoPE, from the resolved options and the parameters of the source."""
    before = dict((options.before or {})["rope_parameters"])
    found = {}
    for rope in anatomy.ropes:
        own = Rope(rope.label, rope.layers, before if rope.label is None else before[rope.label], rope.dim)
        changed = not set(rope.layers).isdisjoint(map(int, options.layers))
        found[rope.label] = frequencies(changed_parameters(options, own) if changed else own.parameters, rope.dim)
    return found


def check_frequencies(checked: CheckedModel, options: RopeOptions) -> Check:
    """Relative difference between the frequencies of the loaded model and the definition in double precision."""
    import torch

    name = "RoPE as planned"
    modules: dict[str, Any] = rotary_modules(checked.model)
    if not modules:
        return Check(name, "failed", "the loaded model has no rotary embedding")
    worst = 0.0
    for label, (wanted, factor) in expected_frequencies(options, checked.anatomy).items():
        prefix = "" if label is None else f"{label}_"
        for module in modules.values():
            own = getattr(module, f"{prefix}inv_freq").double().cpu()
            if len(own) != len(wanted):
                detail = f"the model rotates {2 * len(own)} dimensions, the plan says {2 * len(wanted)}"
                return Check(name, "failed", detail)
            difference = (own / torch.tensor(wanted, dtype=torch.float64) - 1).abs().max().item()
            worst = max(worst, difference, abs(getattr(module, f"{prefix}attention_scaling") / factor - 1))
    return bounded(name, worst, FREQUENCY_BOUND, "greatest relative difference of frequencies and attention factor")


def check_effect(checked: CheckedModel) -> Check:
    """Check that the logits change, except at the first position, which attends only to itself."""
    moved = (checked.logits(on=("rope",)) - checked.logits(on=())).abs()
    first, most = moved[:, 0].max().item(), moved.max().item()
    detail = f"by up to {most:.3g}; at the first position, which attends only to itself, by {first:.3g}"
    return Check(
        "RoPE changes the logits", "passed" if most > FIRST_POSITION_BOUND >= first else "failed", detail, most
    )
