"""Speed and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgery.evaluation.measure import Measurement
from surgery.evaluation.speed.result import MemoryUse, SpeedCase, SpeedResult, SpeedSection


def speed_section(
    measurements: Sequence[tuple[int, Measurement]], base: Measurement | None, models: int
) -> SpeedSection | None:
    """Rates of each model, and of its base in the same turns; None where nothing was measured."""
    if not measurements:
        return None
    return SpeedSection(
        kind="speed",
        title="Speed and memory",
        options=dict(measurements[0][1]["part"]),
        results=tuple(_result(number, own["units"], models) for number, own in measurements),
    )


def _result(number: int, units: Sequence[Mapping[str, Any]], models: int) -> SpeedResult:
    cases = [unit for unit in units if "rate" in unit]
    memory = [unit for unit in units if "who" in unit]
    return SpeedResult(
        model=number,
        cases=tuple(SpeedCase(unit["case"], unit["rate"], unit["base_rate"], unit["time_ratio"]) for unit in cases),
        memory=tuple(
            MemoryUse(
                model=number if unit["who"] == "model" else models,
                tokens=int(unit["case"].rpartition(" ")[2]),
                weights=unit["weights"],
                cache=unit["cache"],
                prefill=unit["prefill"],
            )
            for unit in memory
        ),
    )
