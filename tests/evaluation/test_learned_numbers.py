"""Learned numbers as they come off a model, against the modelling file's own multiplier."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from surgery.evaluation.models import learned_numbers
from surgery.operations.ssmax.modeling import SSMax

LENGTH = 512


def _model(form: str, scale: list[list[float]], *, heads: list[int] | None = None, bias: Any = None) -> Any:
    start = {
        "paper": {"scale": 0.1},
        "bias": {"scale": 0.0, "bias": 1.0},
        "anchored": {"scale": 0.0},
        "logn": {},
        "constant": {"bias": 1.0},
    }
    options = {
        "name": "ssmax",
        "form": form,
        "reference_length": None if form == "constant" else 64,
        "layers": [1, 3],
        "heads": heads,
        "start": start[form],
    }
    modules = nn.ModuleDict()
    for row, layer in enumerate((1, 3)):
        operation = SSMax(options, num_heads=4)
        with torch.no_grad():
            if form not in ("logn", "constant"):
                operation.scale.copy_(torch.tensor(scale[row]))
            if form in ("bias", "constant"):
                operation.bias.copy_(torch.tensor(bias[row]))
        modules[str(layer)] = nn.ModuleDict({"attention": nn.ModuleDict({"ssmax": operation})})
    base = nn.Module()
    base.layers = modules
    block = {"attention": "layers.{layer}.attention", "operations": [options]}
    return SimpleNamespace(config=SimpleNamespace(surgery=block), base_model=base)


SCALES = [[0.1, -0.2, 0.3, 0.0], [0.5, 0.02, -0.4, 0.26]]


@pytest.mark.parametrize("form", ["paper", "bias", "anchored", "logn", "constant"])
def test_multipliers_are_those_of_the_modelling_file(form: str) -> None:
    model = _model(form, SCALES, bias=SCALES[::-1])
    (found,) = learned_numbers(model, LENGTH)
    assert [point.n for point in found.multipliers] == [
        1,
        16,
        *((256, LENGTH) if form == "constant" else (64, 128, 256)),
    ]
    for row, layer in enumerate(("1", "3")):
        operation = model.base_model.layers[layer]["attention"]["ssmax"]
        for point in found.multipliers:
            expected = operation(torch.tensor([[float(point.n)]]))[0, :, 0, 0]
            torch.testing.assert_close(torch.tensor(point.values[row]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["paper", "bias", "anchored", "constant"])
def test_negative_heads_are_found_exactly(form: str) -> None:
    model = _model(form, SCALES, bias=[[1.0, 0.5, -0.9, -1.0], [1.0, -0.01, 0.7, -0.7]])
    (found,) = learned_numbers(model, LENGTH)
    named = {(head.layer, head.head): (head.first, head.last) for head in found.negative_heads}
    contexts = torch.arange(1, LENGTH + 1).float()[None]
    for layer in (1, 3):
        values = model.base_model.layers[str(layer)]["attention"]["ssmax"](contexts)[0, :, :, 0]
        for head in range(4):
            negative = (torch.nonzero(values[head] < 0).flatten() + 1).tolist()
            assert named.get((layer, head)) == ((negative[0], negative[-1]) if negative else None)


def test_the_bound_is_that_of_the_anchored_form() -> None:
    (found,) = learned_numbers(_model("anchored", [[0.5, 0, 0, 0], [0, 0, 0, 0]]), LENGTH)
    (head,) = found.negative_heads
    assert (head.layer, head.head, head.first) == (1, 0, 1) and head.last == math.floor(64 * math.exp(-1 / 0.5))


def test_how_far_the_numbers_moved() -> None:
    (found,) = learned_numbers(_model("paper", SCALES), LENGTH)
    moved = [abs(value - 0.1) for row in SCALES for value in row]
    assert found.moved_mean == pytest.approx(sum(moved) / 8, abs=1e-7) and found.moved_most == pytest.approx(0.5)
    assert found.values["scale"][1] == pytest.approx(SCALES[1]) and found.layers == (1, 3)


def test_numbers_at_their_start_have_not_moved_at_all() -> None:
    (found,) = learned_numbers(_model("paper", [[0.1] * 4] * 2), LENGTH)
    assert found.moved_most == 0 and {value for row in found.values["scale"] for value in row} == {found.start["scale"]}


def test_chosen_heads_keep_their_numbers() -> None:
    (found,) = learned_numbers(_model("anchored", [[0.1, 0.9], [0.0, 0.0]], heads=[0, 2]), LENGTH)
    assert found.heads == (0, 2) and [(head.layer, head.head) for head in found.negative_heads] == [(1, 2)]


def test_nothing_learned() -> None:
    (found,) = learned_numbers(_model("logn", []), LENGTH)
    assert found.values == {} and found.moved_most is None and found.negative_heads == ()
    assert learned_numbers(SimpleNamespace(config=SimpleNamespace()), LENGTH) == ()


def test_thresholds_and_windows_of_screening(make_source: Any, tmp_path: Path) -> None:
    import surgery
    from surgery.loading import load_model

    start = {"threshold": 0.25, "softness": 0.5, "log2_window": 3.0}
    out = surgery.convert(make_source("llama"), "screening", start=start, output=tmp_path / "out").output
    model = load_model(out)
    with torch.no_grad():
        model.model.layers[1].self_attn.screening.threshold[2] = 0.75
    (found,) = learned_numbers(model, LENGTH)
    assert (found.name, found.form, found.reference_length) == ("screening", "gated", None)
    assert set(found.values) == set(start) and found.start == start
    layer = found.layers.index(1)
    assert found.values["threshold"][layer][2] == 0.75 and found.values["log2_window"][layer][0] == 3.0
    assert found.moved_most == 0.5 and found.multipliers == () and found.negative_heads == ()
