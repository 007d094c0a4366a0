"""config.json of a converted checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surgery.errors import CheckpointError
from surgery.operations.code import ENTRY_NAME

if TYPE_CHECKING:
    from surgery.anatomy.families import Family
    from surgery.conversion.plan import Plan, PreparedPlan


def converted_config(prepared: PreparedPlan) -> dict[str, Any]:
    """config.json of the output, from the source's and the plan."""
    return config_after(prepared.checkpoint.config, prepared.plan, prepared.anatomy.family)


def config_after(source: Mapping[str, Any], plan: Plan, family: Family) -> dict[str, Any]:
    """config.json that a plan makes of a source's.

    Where no code travels the source's type, architectures and code of its own stay, and nothing is locked: a stock
    class is the right one.

    Args:
        source: config.json of the source.
        plan: of the conversion.
        family: of the source.
    """
    from surgery.anatomy.config_locks import lock

    block = {
        "format_version": plan.format_version,
        "tool_version": plan.tool_version,
        "base": dict(plan.source),
        "plan_hash": plan.hash,
        **family.for_runtime,
        "operations": [dict(options) for options in plan.operations],
    }
    config = {**with_changes(source, plan.config), "surgery": block}
    if not plan.has_code:
        return config
    module = ENTRY_NAME.removesuffix(".py")
    config |= {
        "model_type": plan.model_type,
        "architectures": [plan.architecture],
        "auto_map": {
            **kept_auto_map(source),
            "AutoConfig": f"{module}.Surgery{family.config_class}",
            "AutoModel": f"{module}.Surgery{family.base_model}",
            "AutoModelForCausalLM": f"{module}.{plan.architecture}",
        },
    }
    if family.text is not None:
        config["auto_map"]["AutoModelForImageTextToText"] = f"{module}.{plan.architecture}"
    return lock(config, family)


def with_changes(source: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A source's config.json with the entries that operations change in it; None removes an entry."""
    config = {**source, **changes}
    return {name: value for name, value in config.items() if not (value is None and name in changes)}


def kept_auto_map(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a source's auto_map for other code than the model's, such as a custom tokenizer."""
    auto_map = config.get("auto_map")
    if auto_map is None:
        return {}
    if not isinstance(auto_map, dict):
        raise CheckpointError(f"config.json: auto_map must be an object, not {auto_map!r}")
    return {name: value for name, value in auto_map.items() if not name.startswith(("AutoModel", "AutoConfig"))}
