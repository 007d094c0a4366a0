"""Verification of screened checkpoints: right ones pass, spoilt ones fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from surgery.operations.screening.calibration import Calibration, CalibrationSettings, calibrate
from surgery.operations.screening.modeling import Screening, blocks
from surgery.runtime import models
from surgery.verification import verify
from tests.tokenizers import write_texts
from tests.verification.test_verify import BY_MASK, FILES, FRESH, N, by_status

OFF, ON = "operation off = source", "starts as the source"
RECORD = "calibration.json is the plan's"


@pytest.fixture(scope="module")
def calibration(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    texts = tmp_path_factory.mktemp("texts")
    write_texts(texts, documents=3, words=120)
    settings = CalibrationSettings(save="keys", lengths=(64,), observe=2, hold_out=1, rows=16, max_loss_increase=1.0)
    return calibrate(source, [texts], settings=settings)


def failed(out: Path, source: Path) -> set[str]:
    return {check.name for check in verify(out, against=source).failed}


@pytest.mark.fresh
def test_open_passes_and_is_the_source(source: Path, make_pair: Any) -> None:
    result = verify(make_pair(to="screening", open=True), against=source)
    assert result.failed == () and by_status(result, "skipped") == BY_MASK
    expected = FILES | FRESH | {"loads", OFF, ON, "ablation"} | N | {"n: visible keys"}
    assert by_status(result, "passed") == expected - BY_MASK - {"n: multipliers"}


def test_calibrated_passes_and_says_that_it_is_another_model(
    source: Path, make_pair: Any, calibration: Calibration
) -> None:
    out = make_pair(to="screening", calibration=calibration)
    result = verify(out, against=source)
    assert result.failed == () and by_status(result, "skipped") == {ON} | BY_MASK
    assert RECORD in by_status(result, "passed")
    assert "calibration " + calibration.hash[:16] in (out / "README.md").read_text()


def test_with_ssmax_and_rope_in_one_plan(source: Path, make_pair: Any) -> None:
    operations = [{"name": "ssmax", "form": "logn"}, {"name": "screening", "open": True}, {"name": "rope"}]
    result = verify(make_pair(to=operations), against=source)
    assert result.failed == ()
    assert [check.status for check in result.checks if check.name == "ablation"] == ["passed", "passed"]


def test_a_record_that_is_not_the_plans(source: Path, make_pair: Any, calibration: Calibration) -> None:
    out = make_pair(to="screening", calibration=calibration)
    record = out / "surgery" / "calibration.json"
    content = json.loads(record.read_text())
    content["settings"]["sinks"] = 5
    record.write_text(json.dumps(content))
    assert failed(out, source) == {RECORD}
    record.unlink()
    assert failed(out, source) == {RECORD}


def test_thresholds_that_have_no_effect(source: Path, make_pair: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(Screening, "is_open", lambda _: True)
    assert failed(make_pair(to="screening", open=True), source) == {"ablation"}


def test_distances_in_slots_rather_than_keys(source: Path, make_pair: Any, monkeypatch: Any) -> None:
    """Counting the slots of a row, as the obvious code would, is wrong where a static cache has room to spare."""
    locate = blocks.locate_keys

    def by_slot(mask: Any, n: Any, rows: Any, keys: int, queries: int) -> Any:
        distance, allowed, place = locate(mask, n, rows, keys, queries)
        if mask is None:
            return distance, allowed, place
        import torch

        slots = (keys - queries + rows)[:, None] - torch.arange(keys)
        return slots[None, None].expand_as(distance), allowed, place

    monkeypatch.setattr(blocks, "locate_keys", by_slot)
    found = failed(make_pair(to="screening", open=True), source)
    assert "n: static cache" in found and found <= N


def test_sinks_by_slot_rather_than_by_document(source: Path, make_pair: Any, monkeypatch: Any) -> None:
    locate = blocks.locate_keys

    def first_slots(mask: Any, n: Any, rows: Any, keys: int, queries: int) -> Any:
        import torch

        distance, allowed, place = locate(mask, n, rows, keys, queries)
        return distance, allowed, torch.arange(keys).expand_as(place)

    monkeypatch.setattr(blocks, "locate_keys", first_slots)
    found = failed(make_pair(to="screening", open=True), source)
    assert {"n: packed", "n: left-padded"} <= found <= N


def test_truncated_for_a_small_machine(source: Path, make_pair: Any, tmp_path: Path) -> None:
    out = make_pair(to="screening", open=True)
    copied = Path(shutil.copytree(out, tmp_path / "copy"))
    result = verify(copied, against=source, layers=2)
    assert result.failed == ()


def test_n_is_compared_itself_where_nothing_is_multiplied(
    make_pair: Any, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count that is off by one moves no logit of an open model."""
    out = make_pair(to="screening", open=True)
    count = models.count_visible_keys
    checks = {check.name: check for check in verify(out, against=source, record=False).checks}
    assert checks["n: visible keys"].status == "passed" and "n: multipliers" not in checks
    monkeypatch.setattr(
        models,
        "count_visible_keys",
        lambda *given, **named: count(*given, **named) + (named.get("attention_mask") is not None),
    )
    assert "n: visible keys" in failed(out, source)
