"""Screening's plan: where its values come from, shapes, identity, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from surgery.checkpoint import open_checkpoint, tensor_bytes
from surgery.conversion import convert, make_plan
from surgery.errors import PlanRefusedError, UsageError
from surgery.operations import OPERATIONS
from surgery.operations.screening import PARAMETERS, ScreeningOptions


def options(**given: Any) -> list[dict[str, Any]]:
    return [{"name": "screening", **given}]


def calibrated(layers: int = 3, heads: int = 4) -> dict[str, Any]:
    values = {
        layer: {
            "threshold": tuple(0.1 * head + layer for head in range(heads)),
            "softness": (0.02,) * heads,
            "log2_window": (3.0,) * heads,
        }
        for layer in range(layers)
    }
    return {"values": values, "calibration": "ab" * 32}


def test_without_thresholds_it_is_refused_with_what_to_do(make_source: Any) -> None:
    with pytest.raises(PlanRefusedError, match="no thresholds") as refused:
        make_plan(make_source("llama"), options())
    assert refused.value.hint is not None and "--calibrate" in refused.value.hint and "--open" in refused.value.hint


def test_open_is_the_identity(make_source: Any) -> None:
    plan = make_plan(make_source("llama"), options(open=True)).plan
    assert plan.identity == ("everywhere",)
    assert [tensor.name for tensor in plan.tensors[:3]] == [
        f"model.layers.0.self_attn.screening.{name}" for name in PARAMETERS
    ]
    assert {tensor.shape for tensor in plan.tensors} == {(4,)}
    assert any("starts open" in warning for warning in plan.warnings)
    assert plan.operations[0]["full_window"] == 64


@pytest.mark.parametrize("full_window", [1, 2, 3, 1000, 4096, 131072, 1_000_000])
def test_the_open_start_is_open_at_every_length(make_source: Any, full_window: int) -> None:
    plan = make_plan(make_source("llama"), options(open=True, full_window=full_window)).plan
    assert plan.identity == ("everywhere",)


def test_a_start_that_rejects_is_no_identity(make_source: Any) -> None:
    assert make_plan(make_source("llama"), options(start={"threshold": 0.2})).plan.identity == (None,)
    assert make_plan(make_source("llama"), options(start={"log2_window": 4.0})).plan.identity == (None,)
    assert make_plan(make_source("llama"), options(start={"softness": 0.5})).plan.identity == ("everywhere",)


def test_calibrated_values_go_into_the_tensors_and_not_into_config(make_source: Any, tmp_path: Path) -> None:
    out = convert(make_source("llama"), options(**calibrated()), output=tmp_path / "out").output
    checkpoint = open_checkpoint(out)
    info = checkpoint.tensors["model.layers.2.self_attn.screening.threshold"]
    found = struct.unpack("<4f", bytes(tensor_bytes(out / info.shard, info)))
    assert found == pytest.approx((2.0, 2.1, 2.2, 2.3))
    block = json.loads((out / "config.json").read_text())["surgery"]["operations"][0]
    assert block["calibration"] == "ab" * 32 and "values" not in block
    assert make_plan(make_source("llama"), options(**calibrated())).plan.identity == (None,)


def test_values_that_do_not_fit_are_refused(make_source: Any) -> None:
    with pytest.raises(PlanRefusedError, match="layers"):
        make_plan(make_source("llama"), options(layers="0-1", **calibrated()))
    with pytest.raises(PlanRefusedError, match="3 values"):
        make_plan(make_source("llama"), options(**calibrated(heads=3)))
    with pytest.raises(PlanRefusedError, match="not given"):
        make_plan(make_source("llama"), options(calibration="ab" * 32))
    with pytest.raises(UsageError, match="need the hash"):
        make_plan(make_source("llama"), options(values=calibrated()["values"]))
    with pytest.raises(UsageError, match="exclude"):
        make_plan(make_source("llama"), options(open=True, **calibrated()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start": {"scale": 1.0}}, "no parameter 'scale'"),
        ({"start": {"softness": -0.1}}, "negative"),
        ({"start": {"threshold": float("nan")}}, "threshold"),
        ({"sinks": -1}, "sinks"),
        ({"form": "unti"}, "form"),
    ],
)
def test_wrong_options(make_source: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_plan(make_source("llama"), options(open=True, **given))


def test_sliding_layers_are_left_alone_unless_asked_for(make_source: Any) -> None:
    plan = make_plan(make_source("gemma2"), options(open=True)).plan
    assert plan.operations[0]["layers"] == [1]
    assert "window" in plan.skipped_layers["screening:0"]
    asked = make_plan(make_source("gemma2"), options(open=True, layers="all")).plan
    assert any("slide" in warning for warning in asked.warnings)
    assert any("sdpa" in warning for warning in asked.warnings)


def test_it_describes_itself_from_what_config_json_holds(make_source: Any) -> None:
    for given in ({"open": True}, calibrated(), {"start": {"threshold": 0.25}}, {"calibration": "pending"}):
        plan = make_plan(make_source("llama"), options(**given)).plan
        again = ScreeningOptions.model_validate(dict(plan.operations[0]))
        assert OPERATIONS["screening"].describe(again).startswith("form gated, first 4 tokens kept")
