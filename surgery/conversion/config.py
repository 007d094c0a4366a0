"""config.json of a converted checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgery.checkpoint import Checkpoint
from surgery.errors import CheckpointError
from surgery.operations.code import ENTRY_NAME

if TYPE_CHECKING:
    from surgery.conversion.plan import PreparedPlan


def converted_config(prepared: PreparedPlan) -> dict[str, Any]:
    """config.json of the output, from the source's and the plan.

    Where no code travels the source's type, architectures and code of its own stay, and nothing is locked: a stock
    class is the right one.
    """
    from surgery.anatomy.config_locks import lock

    plan = prepared.plan
    block = {
        "format_version": plan.format_version,
        "tool_version": plan.tool_version,
        "base": dict(plan.source),
        "plan_hash": plan.hash,
        **prepared.anatomy.family.for_runtime,
        "operations": [dict(options) for options in plan.operations],
    }
    config = {**prepared.checkpoint.config, **plan.config, "surgery": block}
    config = {name: value for name, value in config.items() if not (value is None and name in plan.config)}
    if not plan.has_code:
        return config
    family = prepared.anatomy.family
    module = ENTRY_NAME.removesuffix(".py")
    config |= {
        "model_type": plan.model_type,
        "architectures": [plan.architecture],
        "auto_map": {
            **kept_auto_map(prepared.checkpoint),
            "AutoConfig": f"{module}.Surgery{family.config_class}",
            "AutoModel": f"{module}.Surgery{family.base_model}",
            "AutoModelForCausalLM": f"{module}.{plan.architecture}",
        },
    }
    if family.text is not None:
        config["auto_map"]["AutoModelForImageTextToText"] = f"{module}.{plan.architecture}"
    return lock(config, family)


def kept_auto_map(checkpoint: Checkpoint) -> dict[str, Any]:
    """The entries of the source's auto_map for other code than the model's, such as a custom tokenizer."""
    auto_map = checkpoint.config.get("auto_map")
    if auto_map is None:
        return {}
    if not isinstance(auto_map, dict):
        raise CheckpointError(f"config.json: auto_map must be an object, not {auto_map!r}")
    return {name: value for name, value in auto_map.items() if not name.startswith(("AutoModel", "AutoConfig"))}
