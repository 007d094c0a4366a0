"""The table of families as plain data: kinds of attention, operations that apply, and notes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from surgery.anatomy import FAMILIES, REFUSED, Family, find_family
from surgery.anatomy.families import VERIFIED
from surgery.operations import OPERATIONS

_CLASS_ENDING = re.compile(r"(forcausallm|lmheadmodel|forconditionalgeneration|model|config)$")


@dataclass(frozen=True)
class FamilyEntry:
    """One family as `surgery families` shows it.

    Attributes:
        model_type: as in config.json.
        architecture: transformers' class.
        attention: kinds of attention layers that the family can have.
        positions: where its positions come from.
        operations: for each operation why it is refused on this family, or None where it applies.
        caveats: notes for users.
        verified_with: the versions of transformers that the family passed the tests with.
    """

    model_type: str
    architecture: str
    attention: str
    positions: str
    operations: Mapping[str, str | None]
    caveats: tuple[str, ...]
    verified_with: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def family_entries() -> list[FamilyEntry]:
    """Every supported family, by name."""
    return [_entry(FAMILIES[model_type]) for model_type in sorted(FAMILIES)]


def refused_families() -> dict[str, str]:
    """Model type -> the reason why it is refused."""
    return dict(sorted(REFUSED.items()))


def find_families(name: str) -> tuple[str, ...]:
    """Model types of the supported families with a name, in upper or lower case.

    Args:
        name: a model type, or one of transformers' classes: ``LlamaForCausalLM``, ``LlamaConfig``.

    Raises:
        PlanRefusedError: the name is unknown, or the family is refused, with the reason.
    """
    if name in FAMILIES or name in REFUSED:
        return (find_family(name).model_type,)
    wanted = _plain(name)
    types = {_plain(known): known for known in (*REFUSED, *FAMILIES)}
    if wanted in types:
        return (find_family(types[wanted]).model_type,)
    found = tuple(
        model_type
        for model_type, family in FAMILIES.items()
        if wanted in map(_plain, (family.architecture, family.config_class, family.base_model))
    )
    # Endings of class names, for refused families, which have no row.
    bare = _CLASS_ENDING.sub("", wanted)
    return found or (find_family(types.get(bare, name)).model_type,)


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def caveats(family: Family) -> list[str]:
    """Limits of the family's own model, which a converted model has too, and the family's notes."""
    broken: dict[str, list[str]] = {}
    for presentation, reason in family.breaks.items():
        broken.setdefault(reason, []).append(presentation)
    found = [
        f"the model, converted or not, computes different logits for these presentations of the input: "
        f"{', '.join(map(repr, names))} ({reason})"  # quoted, since a name may hold a comma
        for reason, names in broken.items()
    ]
    found += [
        f"{family.architecture} does not run in transformers {version}: {reason}"
        for version, reason in family.fails.items()
    ]
    return [*found, *family.notes]


def _entry(family: Family) -> FamilyEntry:
    kinds = ["full"] if family.sliding != "every" else ["full or all sliding"]
    if family.sliding == "layer_types":
        kinds.append(family.local)
    if family.hybrid:
        kinds.append("some layers have none")
    found = caveats(family)
    for operation in OPERATIONS.values():
        found += operation.family_caveats(family)
    return FamilyEntry(
        model_type=family.model_type,
        architecture=family.architecture,
        attention=", ".join(kinds),
        positions=family.positions,
        operations={name: operation.family_refusal(family) for name, operation in OPERATIONS.items()},
        caveats=tuple(found),
        verified_with=VERIFIED[family.model_type],
    )
