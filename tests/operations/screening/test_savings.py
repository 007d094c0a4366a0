"""What windows save, against counting every pair of query and key."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from surgery.operations.screening.savings import BLOCK, blocks_outside, group_windows, kept_keys, keys_outside, saving

WINDOWS = [1, 2, 127, 128, 129, 130, 300, math.inf]


def pairs(window: float, tokens: int, sinks: int) -> Any:
    """The pairs that may be looked at, and those that are, ``(queries, keys)``."""
    distance = np.arange(tokens)[:, None] - np.arange(tokens)
    return distance >= 0, (distance >= 0) & ((distance < window) | (np.arange(tokens) < sinks))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("sinks", [0, 4, 130])
def test_blocks_outside_a_window_are_those_without_a_key_in_it(window: float, sinks: int) -> None:
    _, looked_at = pairs(window, 4 * BLOCK, sinks)
    blocks = looked_at.reshape(4, BLOCK, 4, BLOCK).any((1, 3))
    assert blocks_outside(window, 4 * BLOCK, sinks) == pytest.approx((10 - blocks.sum()) / 10)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("sinks", [0, 4, 130])
def test_keys_outside_a_window(window: float, sinks: int) -> None:
    allowed, looked_at = pairs(window, 200, sinks)
    assert keys_outside(window, 200, sinks) == pytest.approx(1 - looked_at.sum() / allowed.sum())
    assert kept_keys(window, 200, sinks) == looked_at[-1].sum()


def layer(index: int, kind: str = "full", window: int | None = None) -> SimpleNamespace:
    return SimpleNamespace(index=index, kind=kind, window=window, kv_heads=2, head_dim=8)


def test_the_cache_of_the_whole_model() -> None:
    """Of 100 tokens: a screened layer, one without screening, a sliding one of 30 keys; one without attention."""
    anatomy: Any = SimpleNamespace(layers=[layer(0), layer(1), layer(2, "sliding", 30), layer(3, "none")])
    found = saving({0: (10, math.inf)}, anatomy, 100, 4)
    assert found.cache == pytest.approx((14 + 100 + 2 * 100 + 2 * 30) / (4 * 100 + 2 * 30))
    assert found.keys == pytest.approx(keys_outside(10, 100, 4) / 2) and found.blocks == 0
    assert saving({0: (10, math.inf)}, anatomy, 8, 4).cache == 1


def test_a_group_reaches_as_far_as_its_widest_head() -> None:
    anatomy: Any = SimpleNamespace(heads=4, layers=[SimpleNamespace(kv_heads=2)])
    every = SimpleNamespace(layer=0, log2_window=(3.0, 5.0, 2.0, 7.0))
    assert group_windows([every], anatomy, None, 64) == {0: (32, math.inf)}
    two = SimpleNamespace(layer=0, log2_window=(3.0, 2.0))
    assert group_windows([two], anatomy, (0, 1), 64) == {0: (8, math.inf)}
