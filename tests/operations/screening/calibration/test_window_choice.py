"""The choice of windows for groups, against every combination; and what the sampled queries count."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgery.errors import UsageError
from surgery.operations.screening.calibration import Calibration, CalibrationSettings, calibrate
from surgery.operations.screening.calibration.grid import Grid, sum_over_keys, sum_over_windows
from surgery.operations.screening.calibration.window_choice import GroupEffects, position_shares

SETTINGS = CalibrationSettings(lengths=(32, 64), observe=4, hold_out=2, rows=24, max_loss_increase=0.05)


def effects(seed: int, groups: int = 4, windows: int = 3, queries: int = 50) -> GroupEffects:
    """Changes that grow with the narrowness of the window, and that the groups have partly in common."""
    random = np.random.default_rng(seed)
    common, own = random.normal(size=(queries, 1, 1)), random.normal(size=(queries, groups, 1))
    size = np.linspace(1, 0, windows) * random.uniform(0.5, 2, (groups, 1))
    changes = ((common + own) * size / np.sqrt(queries)).astype(np.float32)
    saved = np.broadcast_to(np.linspace(1, 0, windows) / groups, (groups, windows))
    return GroupEffects(changes, saved, np.zeros((groups // 2, 4, 1, windows)), (2,) * (groups // 2))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("price", [1.0, 5.0, 20.0])
def test_the_choice_is_the_best_of_all(seed: int, price: float) -> None:
    given = effects(seed)
    found = given.choose(price)
    worths = {}
    for each in itertools.product(range(3), repeat=4):
        own = np.array([given.changes[:, group, window].astype(float) for group, window in enumerate(each)])
        # Half of the products of two groups counts.
        loss = float((own.sum(0) ** 2).sum() + (own**2).sum()) / 4
        worths[each] = sum(given.saved[group, window] for group, window in enumerate(each)) - loss / price, loss
    chosen = tuple(int(window) for window in found.window[:, ::2].ravel())
    assert worths[chosen][0] == pytest.approx(max(worth for worth, _ in worths.values()))
    assert found.loss_increase == pytest.approx(worths[chosen][1], rel=1e-5)
    assert (found.window[:, ::2] == found.window[:, 1::2]).all() and (found.threshold == 0).all()


def test_groups_that_lose_the_same_cost_more_than_each_alone() -> None:
    """Two equal groups: closing one costs 1/2, closing both 2, of which half of what is beyond 1 counts."""
    changes = np.zeros((1, 2, 2), dtype=np.float32)
    changes[0, :, 0] = 1
    given = GroupEffects(changes, np.array([[0.5, 0], [0.5, 0]]), np.zeros((1, 2, 1, 2)), (1,))
    assert given.choose(1.5).loss_increase == 0.5  # a half is worth 0.75; the second would cost 1 more
    assert given.choose(4.0).loss_increase == 1.5


def test_positions_that_many_passages_have_count_once() -> None:
    places = np.array([0, 10, 20, 90, 0])
    shares = position_shares(places, [32, 128])
    assert shares == pytest.approx([0.25 / 4] * 3 + [0.75, 0.25 / 4])


@pytest.fixture(scope="module")
def calibration(source: Path, texts: Path) -> Calibration:
    return calibrate(source, [texts], settings=SETTINGS)


def test_memory_gives_windows_by_group_and_no_thresholds(calibration: Calibration) -> None:
    assert calibration.worst <= SETTINGS.max_loss_increase
    assert any(not all(layer.open) for layer in calibration.layers)
    for layer in calibration.layers:
        assert layer.log2_window[0] == layer.log2_window[1] and layer.log2_window[2] == layer.log2_window[3]
        assert max(layer.threshold) < -1
        for window, opened in zip(layer.log2_window, layer.open, strict=True):
            assert opened or 2**window <= 32.1, "the passages of 64 tokens reach twice as far as 32"
    assert calibration.settings["windows"] == "group" and calibration.settings["context"] == 64


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"windows": "head"}, {}, "needs windows by group"),
        ({"budget": 0.1}, {}, "budget chooses by softmax mass"),
        ({"save": "keys", "context": 64}, {}, "context has no effect"),
        ({"softness": 0.1}, {}, "softness is that of thresholds"),
        ({"save": "memory"}, {"form": "unit"}, "a screening unit needs both"),
        ({}, {"heads": "0"}, "need all heads"),
    ],
)
def test_settings_without_effect(
    source: Path, texts: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    settings = CalibrationSettings.model_validate({**SETTINGS.model_dump(exclude_unset=True), **changes})
    with pytest.raises(UsageError, match=message):
        calibrate(source, [texts], options=options, settings=settings)


def test_the_two_ways_to_add_up_a_head_agree() -> None:
    """Two heads, random weights with a mask and sinks: the sums over windows are those of the lowest threshold."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = 12, 20
    allowed = torch.ones(queries, keys).tril(keys - queries).bool()
    allowed[:, 5:8] = False
    running = allowed.cumsum(-1)
    distance = running[:, -1:] - running
    free = allowed & (running > 2)
    weights = torch.rand(2, queries, keys, generator=generator).masked_fill(~allowed, 0)
    weights /= weights.sum(-1, keepdim=True)
    pull = torch.randn(2, queries, keys, generator=generator)
    rejected, mass, changed = sum_over_windows(Grid((-1.0,), (1, 4, 11, 64)), weights, distance, free, pull)
    for head in range(2):
        relevance = torch.full((queries, keys), -1.0)
        grid = Grid((-1.0, 0.0), (1, 4, 11, 64))
        found = sum_over_keys(grid, weights[head], relevance, distance, free, pull[head])
        assert torch.equal(rejected, found[0][0])
        assert mass[head] == pytest.approx(found[1][0].numpy(), abs=1e-5)
        assert changed[head].double().square().sum(0) == pytest.approx(found[2][0].numpy(), abs=1e-4)
    assert changed[..., -1].abs().max() == 0 and rejected[-1] == 0 and rejected[0] == (free & (distance > 0)).sum()
