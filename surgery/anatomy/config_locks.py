"""Locks: entries of a converted config.json that make a stock class refuse it, because it would drop the new tensors.

The travelling code has the same two functions for use inside transformers. Both read ``surgery.locks`` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.anatomy.families import Family

# An attention implementation that does not exist. A keyword of from_pretrained overrides it, so there is also a text in
# place of a number: every family's config class refuses it, and its error quotes the text. The base config class, which
# loads the tokenizer, accepts both.
LOCKS: dict[str, Any] = {
    "attn_implementation": "surgery",
    "initializer_range": (
        "This checkpoint's attention was operated on. A stock class would silently drop the new parameters. Load it "
        "with AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True), or `import surgery` first."
    ),
}


def lock(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The config with :data:`LOCKS`; ``surgery.locks`` keeps the values that they replace.

    Args:
        config: with its block ``surgery``.
        family: gives the spelling of the keys, because only a key of its config class can lock. In a model of several
            parts, the number must be in the language model's own config, which ``inside`` names.
    """
    locks: dict[str, dict[str, Any]] = {family.spelling(name): {"lock": value} for name, value in LOCKS.items()}
    if family.text is not None:
        locks[family.spelling("initializer_range")]["inside"] = family.text
    locked = dict(config)
    for name, entry in locks.items():
        holder = _holder(locked, entry)
        if name in holder:
            entry["was"] = holder[name]
        holder[name] = entry["lock"]
    return {**locked, "surgery": {**config["surgery"], "locks": locks}}


def unlock(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without locks, as the family's own class reads it; a config without locks is unchanged."""
    opened = dict(config)
    block = config.get("surgery")
    locks = block.get("locks") if isinstance(block, Mapping) else None
    for name, said in (locks if isinstance(locks, Mapping) else {}).items():
        entry: Mapping[str, Any] = said if isinstance(said, Mapping) else {}
        holder = _holder(opened, entry)
        holder.pop(name, None)
        if "was" in entry:
            holder[name] = entry["was"]
    return opened


def _holder(config: dict[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the config that has a lock's key: the config, or its part ``inside``, replaced by a copy."""
    inside = entry.get("inside")
    part = config.get(inside) if isinstance(inside, str) else None
    if not isinstance(inside, str) or not isinstance(part, Mapping):
        return config
    config[inside] = dict(part)
    return config[inside]
