"""The smallest models that `surgery new` can make."""

from __future__ import annotations

from typing import Any

import pytest

SIZES: dict[str, Any] = {"layers": 2, "heads": 2, "width": 32, "length": 64}


@pytest.fixture
def sizes() -> dict[str, Any]:
    return dict(SIZES)
