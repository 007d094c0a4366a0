"""The model of time: what is fitted, the measurements that travel with the package, and a choice by time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from surgery.operations.screening.calibration import CalibrationSettings, sweep
from surgery.operations.screening.cost import COSTS, CostModel, PhaseCost, fit_phase, read_costs


def test_the_numbers_of_a_phase_are_found_again() -> None:
    """A token outside attention takes 3 s; a unit of open work 0.5 s, and of windowed work 1 s after a start of 4 s."""
    measured = [(whole, 3 + 0.5 * whole, work, 7 + work) for whole in (100, 200, 400) for work in (10, 40)]
    found = fit_phase(measured)
    assert found.fixed == pytest.approx(8) and found.each == pytest.approx(2)
    assert found.share(40, 400) == pytest.approx((8 + 2 * 40) / 400)


def test_the_numbers_come_from_the_measurements_beside_them() -> None:
    content = json.loads(COSTS.read_text())
    assert content["command"].startswith("python -m bench.cost --lengths ")
    for phase, cost in (("prefill", read_costs().prefill), ("decoding", read_costs().decoding)):
        names = ("work", "seconds", "windowed work", "windowed seconds")
        found = fit_phase([tuple(row[name] for name in names) for row in content["rows"][phase]])
        assert (found.fixed, found.each) == pytest.approx((cost.fixed, cost.each))


def test_time_is_the_mean_of_prefill_and_decoding() -> None:
    model = CostModel(PhaseCost(0, 2), PhaseCost(100, 1))
    assert model.share(math.inf, 4096, 4) == 1
    # 32 rows of blocks. A window of one key reaches the row's own block, and the sinks the first one: 63 of 528.
    assert model.share(1, 4096, 4) == pytest.approx((2 * 63 / 528 + (100 + 5) / 4096) / 2)


def test_a_choice_by_time_looks_only_at_what_pays(source: Path, texts: Path) -> None:
    """At 64 tokens a window saves no block and costs time; at 65,536 it saves nearly all."""
    shared = {"lengths": (32, 64), "observe": 4, "hold_out": 2, "rows": 24, "save": "time"}
    short = sweep(source, [texts], allowed=(0.3,), settings=CalibrationSettings.model_validate(shared)).points[0]
    assert short.saved == 0 and all(all(layer.open) for layer in short.calibration.layers)
    settings = CalibrationSettings.model_validate({**shared, "context": 65536})
    long = sweep(source, [texts], allowed=(0.3,), settings=settings).points[0]
    assert long.saved > 0.1 and long.calibration.saved[-1]["blocks"] > 0.1
