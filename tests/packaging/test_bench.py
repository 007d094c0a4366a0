"""Every benchmark imports what it needs; what they measure is no matter of a test."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import bench

NAMES = sorted(path.stem for path in Path(bench.__path__[0]).glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_can_be_imported(name: str) -> None:
    importlib.import_module(f"bench.{name}")
