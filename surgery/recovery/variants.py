"""The model that is trained, and the controls: the same run without the operation, or with constants in its place.

``untouched`` switches the operations off for good, a change of RoPE among them, so the same tokens train the model as
it was. ``temperature`` puts one constant per head where the operation had one number that length multiplies: m(n) = b,
which is the form ``bias`` with s = 0; a change of RoPE stays. All of it happens in memory; no file is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgery.errors import PlanRefusedError
from surgery.recovery.preparing import Layout, Variant
from surgery.recovery.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn


def check_control(variant: Variant, layout: Layout) -> None:
    """Refuse a control that would compare nothing.

    Raises:
        PlanRefusedError: ``temperature`` for an operation that has no learned numbers.
    """
    if variant != "temperature":
        return
    # RoPE stays as the run has it, so that the constant is compared with the numbers alone.
    for operation in [one for one in layout.operations if one.get("name") != "rope"] or layout.operations:
        if operation.get("name") != "ssmax" or operation.get("form") == "logn":
            kind = operation.get("form") or operation.get("name")
            raise PlanRefusedError(
                f"control: temperature learns a constant in place of each number per head; {kind} has none.",
                hint="Set control: untouched.",
            )


def check_objective(stage: Recipe, layout: Layout) -> None:
    """Refuse to learn from the original what it cannot teach.

    Raises:
        PlanRefusedError: RoPE was changed, and layers are to be matched or texts are longer than the original knows.
    """
    rope, objective = layout.rope, stage.objective.name
    if rope is None or objective == "next_token":
        return
    if objective == "match":
        raise PlanRefusedError(
            "objective: match gives each layer what reaches it in the original, its rotary positions included; "
            "they were changed (rope), so every layer would be matched on positions that are not its own.",
            hint="Set objective.name to distill or next_token.",
        )
    known = rope["before"]["max_position_embeddings"]
    if stage.data.sequence_length > known:
        raise PlanRefusedError(
            f"The original knows {known} positions; on sequences of {stage.data.sequence_length} tokens it would "
            "teach what it gets wrong.",
            hint=f"Distill on sequences up to {known}, in a stage of its own, and set objective.name to next_token "
            "for longer ones.",
        )


def check_screening(stage: Recipe, layout: Layout) -> None:
    """Refuse to ask of screening what none of the trained layers can do.

    Raises:
        PlanRefusedError: ``sparsity``, ``softness`` or ``bridge`` is given, and no layer that is trained has
            thresholds; or ``bridge``, and none of them is a unit; or ``softness``, and all of them are units alone.
    """
    asked = [key for key in ("sparsity", "softness", "bridge") if getattr(stage, key) is not None]
    if not asked:
        return
    screened = {layer for one in layout.operations if one.get("name") == "screening" for layer in one["layers"]}
    if not screened:
        done = sorted({" ".join(map(str, layout.described(options))) for options in layout.operations})
        raise PlanRefusedError(
            f"{asked[0]} is about screening's thresholds; the model has {' and '.join(done)}.",
            hint=f"Leave {asked[0]} out, or convert with --to screening.",
        )
    if not screened & set(layout.chosen(stage)):
        raise PlanRefusedError(
            f"{asked[0]} is about screening's thresholds; none of train.layers {stage.train.layers!r} has any.",
            hint=f"Leave {asked[0]} out, or train layers that screening is on.",
        )
    options = next(one for one in layout.operations if one.get("name") == "screening")
    if stage.bridge is not None and options.get("form") != "unit":
        raise PlanRefusedError(
            "bridge leads to screening units; the model has screening of form gated, which has no gain and no bound.",
            hint="Leave bridge out, or convert with --form unit --renormalisation 1, which starts as gated.",
        )
    if stage.softness is not None and stage.bridge is None and options.get("renormalisation") == 0:
        raise PlanRefusedError(
            "softness does nothing in a screening unit, whose ramp always ends at 1 - t.", hint="Leave softness out."
        )


def become(model: nn.Module, variant: Variant, layout: Layout) -> None:
    """Make a freshly loaded model the variant, in place."""
    if variant == "operated":
        return
    from surgery.loading import operation_modules, switch_off

    if variant == "untouched":
        switch_off(model)
        return
    for name, module in operation_modules(model).items():
        parent, _, place = name.rpartition(".")
        setattr(model.get_submodule(parent), place, _constant(module, _options(layout, name)))


def _options(layout: Layout, name: str) -> dict[str, Any]:
    layer = layout.layer(name + ".")
    kind = name.rpartition(".")[2]
    return next(dict(item) for item in layout.operations if item["name"] == kind and layer in item["layers"])


def _constant(module: Any, options: dict[str, Any]) -> Any:
    """The operation's module with m(n) = b, b = 1 at first."""
    import torch

    device = next(module.parameters()).device
    own = type(module)({**options, "form": "bias", "start": {"scale": 0.0, "bias": 1.0}}, module.num_heads).to(device)
    # A buffer rather than a parameter: nothing can train it, whoever switches gradients on.
    zeros = torch.zeros_like(own.scale.data)
    del own.scale
    own.register_buffer("scale", zeros, persistent=False)
    return own
