"""The plan of screening: origin of its values, shapes, identity, refusals."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from surgery.checkpoint import open_checkpoint, tensor_bytes
from surgery.conversion import convert, make_plan, revert
from surgery.errors import PlanRefusedError, UsageError
from surgery.operations import OPERATIONS
from surgery.operations.screening import PARAMETERS, UNIT_PARAMETERS, ScreeningOptions


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
    with pytest.raises(PlanRefusedError, match="without its values"):
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
    assert any("sliding window" in warning for warning in asked.warnings)
    assert any("sdpa" in warning for warning in asked.warnings)


def test_it_describes_itself_from_what_config_json_holds(make_source: Any) -> None:
    for given in ({"open": True}, calibrated(), {"start": {"threshold": 0.25}}, {"calibration": "pending"}):
        plan = make_plan(make_source("llama"), options(**given)).plan
        again = ScreeningOptions.model_validate(dict(plan.operations[0]))
        assert OPERATIONS["screening"].describe(again).startswith("form gated, first 4 tokens kept")


# -------------------------------------------------------------------------------------------------- the form unit


def unit(**given: Any) -> list[dict[str, Any]]:
    return options(form="unit", **given)


def test_a_unit_has_three_numbers_more_and_starts_as_another_layer(make_source: Any) -> None:
    plan = make_plan(make_source("llama"), unit(start={"threshold": 0.1}, layers="0")).plan
    names = [tensor.name.rpartition(".")[2] for tensor in plan.tensors]
    assert names == [*UNIT_PARAMETERS, "renormalisation"] and plan.tensors[-1].start == 0.0
    assert plan.identity == (None,) and any("until it is distilled" in warning for warning in plan.warnings)
    assert "renormalisation" not in make_plan(make_source("llama"), options(open=True)).plan.operations[0]


def test_open_units_start_at_the_other_end_of_the_bridge(make_source: Any) -> None:
    plan = make_plan(make_source("llama"), unit(open=True)).plan
    assert plan.identity == ("everywhere",) and plan.operations[0]["renormalisation"] == 1.0
    assert make_plan(make_source("llama"), unit(open=True, renormalisation=0.0)).plan.identity == (None,)


@pytest.mark.parametrize("form", ["gated", "unit"])
def test_layers_that_keep_their_softmax(make_source: Any, form: str) -> None:
    plan = make_plan(make_source("llama"), options(form=form, open=True, keep_softmax="1")).plan
    assert plan.operations[0]["layers"] == [0, 2] and "keep_softmax" not in plan.operations[0]
    for given, message in (
        ({"keep_softmax": "0-2"}, "every full-attention layer keeps its softmax"),
        ({"keep_softmax": "3"}, "layer 3 of keep_softmax does not exist"),
    ):
        with pytest.raises(PlanRefusedError, match=message):
            make_plan(make_source("llama"), options(form=form, open=True, **given))
    with pytest.raises(UsageError, match="exclude each other"):
        make_plan(make_source("llama"), options(open=True, keep_softmax="0", layers="1"))


def test_ssmax_has_nothing_to_scale_in_a_unit(make_source: Any) -> None:
    ssmax = {"name": "ssmax", "layers": "1-2"}
    for order in (1, -1):
        with pytest.raises(PlanRefusedError, match="layer 1 is a screening unit, which has no softmax"):
            make_plan(make_source("llama"), [*unit(open=True, layers="0-1"), ssmax][::order])
    rope = {"name": "rope", "factor": 2}
    plan = make_plan(make_source("llama"), [ssmax, *unit(open=True, layers="0"), rope]).plan
    assert [one["name"] for one in plan.operations] == ["ssmax", "screening", "rope"]


def test_what_does_nothing_is_refused(make_source: Any) -> None:
    with pytest.raises(PlanRefusedError, match="sinks has no effect in a screening unit"):
        make_plan(make_source("llama"), unit(start={"threshold": 0.1}, sinks=2))
    assert make_plan(make_source("llama"), unit(open=True, sinks=2)).plan.operations[0]["sinks"] == 2
    for given in ({"renormalisation": 0.5}, {"start": {"log2_gain": 1.0}}):
        with pytest.raises(UsageError, match="gated"):
            make_plan(make_source("llama"), options(open="start" not in given, **given))


def test_a_unit_goes_back_to_its_source(make_source: Any, tmp_path: Path) -> None:
    source = make_source("llama")
    out = convert(source, "screening", form="unit", start={"threshold": 0.1}, output=tmp_path / "out").output
    assert "screening unit replaces attention" in (out / "README.md").read_text()
    back = revert(out, output=tmp_path / "back").output
    names = sorted(path.name for path in source.iterdir())
    assert sorted(path.name for path in back.iterdir()) == names
    assert all((back / name).read_bytes() == (source / name).read_bytes() for name in names)
