"""What a shell offers for a value, as the part that is typed already begins; where nothing fits, it offers files."""

from __future__ import annotations

from collections.abc import Iterable


def operations(incomplete: str) -> list[str]:
    """Operations, for ``--to``."""
    from surgery.operations import OPERATIONS

    return _beginning(OPERATIONS, incomplete)


def families(incomplete: str) -> list[str]:
    """Families, for `surgery families`; also refused families, because it shows the reasons."""
    from surgery.anatomy import FAMILIES, REFUSED

    return _beginning(sorted({*FAMILIES, *REFUSED}), incomplete)


def recipes(incomplete: str) -> list[str]:
    """Recipes that ship."""
    return _shipped("recipes", incomplete)


def suites(incomplete: str) -> list[str]:
    """Suites that ship."""
    return _shipped("suites", incomplete)


def _shipped(kind: str, incomplete: str) -> list[str]:
    from surgery.schemas.shipped import shipped_files

    return _beginning((file.name for file in shipped_files(kind)), incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
