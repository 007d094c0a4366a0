"""A check of SSMax: the form ``logn`` has an effect on queries that see more than N keys."""

from __future__ import annotations

import math

from surgery.operations.check import Check, CheckedModel

# N for the check, whose text is short.
LOWERED_REFERENCE = 2


def check_beyond_reference(checked: CheckedModel) -> Check:
    """Check that ``logn`` changes the logits if N is less than the length of the text."""
    modules = [module for module in checked.modules.values() if getattr(module, "form", None) == "logn"]
    before = [module.log_reference for module in modules]
    try:
        for module in modules:
            module.log_reference = math.log(LOWERED_REFERENCE)
        on = checked.logits()
    finally:
        for module, value in zip(modules, before, strict=True):
            module.log_reference = value
    moved = (on - checked.logits(on=checked.others)).abs().max().item()
    detail = f"with N = {LOWERED_REFERENCE} in place of {math.exp(max(before)):.0f}, the logits change by {moved:.3g}"
    return Check("ablation", "passed" if moved > 0.0 else "failed", detail, moved)
