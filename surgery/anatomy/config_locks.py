"""Locks: entries of a converted config.json that make a stock class refuse it, since it would drop the new tensors.

The travelling code holds the same two functions for use inside transformers; both work from ``surgery.locks`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.anatomy.families import Family

# An attention implementation that does not exist; and, because a keyword of from_pretrained overrides that one, a text
# where every family's config class requires a number: its error quotes the text. The plain base config, which the
# tokenizer's loader reads, minds neither.
LOCKS: dict[str, Any] = {
    "attn_implementation": "surgery",
    "initializer_range": (
        "This checkpoint's attention was operated on. A stock class would silently drop the new parameters. Load it "
        "with AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True), or `import surgery` first."
    ),
}


def lock(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The config with :data:`LOCKS` on; ``surgery.locks`` keeps what they displace.

    Args:
        config: with its block ``surgery``.
        family: its own spelling counts; a lock on a key that its config class lacks holds nothing. Neither does one on
            a number outside the language model's own config, where there is one, so ``inside`` names that.
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
    """The config as the family's own class reads it; anything else is returned as it is."""
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
    """Where a lock's key stands: a copy, put into the config, of the part that it is inside, if there is that part."""
    inside = entry.get("inside")
    part = config.get(inside) if isinstance(inside, str) else None
    if not isinstance(inside, str) or not isinstance(part, Mapping):
        return config
    config[inside] = dict(part)
    return config[inside]
