"""Start values of screening units: nearest to attention's own output, by the model's own module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.conversion import convert
from surgery.data import read_documents
from surgery.errors import UsageError
from surgery.evaluation.held_out_passages import divide
from surgery.loading import load_model, load_tokenizer, operation_modules, operations_off
from surgery.operations.screening import UNIT_PARAMETERS
from surgery.operations.screening.calibration import Calibration, CalibrationSettings, calibrate, read_calibration
from surgery.operations.screening.calibration.unit_fit import _fit_lengths
from tests.families import VOCABULARY

UNIT = {"form": "unit", "renormalisation": 0.0, "layers": (1, 2)}
SETTINGS = CalibrationSettings(lengths=(64,), observe=2, hold_out=2, rows=16)


@pytest.fixture(scope="module")
def calibration(source: Path, texts: Path) -> Calibration:
    return calibrate(source, [texts], options=UNIT, settings=SETTINGS)


def test_it_fits_what_the_module_computes(source: Path, texts: Path, calibration: Calibration, tmp_path: Path) -> None:
    """What is missed of the outputs is less than all, and the converted model misses about as much."""
    out = convert(source, "screening", calibration=calibration, output=tmp_path / "out").output
    assert read_calibration(out / "surgery" / "calibration.json") == calibration
    model = load_model(out)
    modules: dict[str, Any] = operation_modules(model)
    assert len(modules) == 2
    for layer, made in zip(calibration.layers, modules.values(), strict=True):
        for name in UNIT_PARAMETERS:
            assert torch.equal(getattr(made, name).detach(), torch.tensor(getattr(layer, name))), name
        assert made.kind() == "unit" and layer.missed is not None and max(layer.missed) < 1
    seen: list[torch.Tensor] = []
    hook = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    error, square = 0.0, 0.0
    passages = divide(read_documents([texts]), load_tokenizer(out), (64,), observe=2, hold_out=2).observed
    with torch.no_grad():
        for passage in passages:  # up to the first unit both models are the same
            model(input_ids=torch.tensor([passage.tokens]))
            with operations_off(model):
                model(input_ids=torch.tensor([passage.tokens]))
            attention, own = seen.pop(), seen.pop()
            heads = (own - attention).square().sum(), attention.square().sum()
            error, square = error + float(heads[0]), square + float(heads[1])
    hook.remove()
    first = calibration.layers[0]
    assert first.missed is not None and error / square == pytest.approx(sum(first.missed) / 4, abs=0.1)


def test_the_lengths_that_come_out_are_those_that_went_in() -> None:
    length = torch.rand(400, generator=torch.Generator().manual_seed(0)).double() * 8
    reached = 2.0 * (0.5 * length / 2.0).tanh()
    ones = torch.ones_like(length)
    found = _fit_lengths(length, reached, reached.square(), 0 * ones, ones)
    again = 2**found.log2_bound * (2**found.log2_gain * length / 2**found.log2_bound).tanh()
    assert found.missed < 0.02 and (again - reached).abs().max() < 0.35
    against = _fit_lengths(length, -reached, reached.square(), ones, ones)
    assert against.rejected == 1.0 and 2**against.log2_gain < 1e-3, "what points the other way is kept small"


def test_the_other_end_of_the_bridge_is_calibrated_as_gated(source: Path, texts: Path, tmp_path: Path) -> None:
    settings = CalibrationSettings(save="keys", lengths=(64,), observe=2, hold_out=2, rows=16, max_loss_increase=0.05)
    gated = calibrate(source, [texts], options={"layers": (1, 2)}, settings=settings)
    bridge = calibrate(source, [texts], options={**UNIT, "renormalisation": 1.0}, settings=settings)
    for plain, own in zip(gated.layers, bridge.layers, strict=True):
        assert (plain.threshold, plain.log2_window, plain.rejected) == (own.threshold, own.log2_window, own.rejected)
        assert own.log2_gain is not None and plain.log2_gain is None
    first, second = (
        load_model(convert(source, "screening", calibration=one, output=tmp_path / name).output)
        for one, name in ((gated, "gated"), (bridge, "bridge"))
    )
    tokens = torch.randint(3, VOCABULARY, (1, 64))
    with torch.no_grad():
        assert torch.equal(first(input_ids=tokens).logits, second(input_ids=tokens).logits)


def test_what_does_nothing_is_refused(source: Path, texts: Path, calibration: Calibration) -> None:
    with pytest.raises(UsageError, match="max_loss_increase has no effect for the form unit"):
        calibrate(source, [texts], options=UNIT, settings=CalibrationSettings(max_loss_increase=0.1))
    with pytest.raises(UsageError, match="form 'gated' differs from the calibration"):
        convert(source, [{"name": "screening", "form": "gated"}], calibration=calibration, output=source / "x")
