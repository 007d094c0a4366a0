"""Verification of changed rotary positions: what passes, and that a change which is not the planned one fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgery.conversion import convert
from surgery.verification import Verification, verify
from tests.verification.test_verify import BY_MASK, FILES, FRESH, N, by_status

ROPE = {"RoPE as planned", "RoPE changes the logits"}
CONFIG = "config.json is the conversion's"
OFF = {"loads", "operation off = source"}


def tampered(out: Path, change: Any) -> None:
    config = json.loads((out / "config.json").read_text())
    change(config)
    (out / "config.json").write_text(json.dumps(config))


def failed(result: Verification) -> set[str]:
    return {check.name for check in result.failed}


@pytest.mark.fresh
def test_a_rope_only_checkpoint_passes_with_the_stock_class(source: Path, tmp_path: Path) -> None:
    out = convert(source, "rope", output=tmp_path / "out").output
    result = verify(out, against=source)
    assert result.failed == () and by_status(result, "skipped") == set()
    expected = FILES | FRESH | OFF | ROPE | N | {"stock class runs it"}
    assert by_status(result, "passed") == expected - BY_MASK - {"stock classes refuse it", "n: multipliers"}


@pytest.mark.parametrize("form", ["anchored", "logn", "paper"])
def test_with_ssmax_in_one_plan_and_one_after_the_other(source: Path, tmp_path: Path, form: str) -> None:
    ssmax = {"name": "ssmax", "form": form}
    both = convert(source, [ssmax, {"name": "rope"}], output=tmp_path / "both").output
    result = verify(both, against=source)
    apart = "starts as the source, RoPE apart"
    assert result.failed == ()
    assert by_status(result, "skipped") == ({apart} if form == "paper" else set())
    assert {apart, "ablation", *ROPE} <= {check.name for check in result.checks}
    longer = convert(source, "rope", output=tmp_path / "longer").output
    later = convert(longer, [ssmax], output=tmp_path / "later").output
    result = verify(later, against=longer)
    assert result.failed == () and not ROPE & {check.name for check in result.checks}


def test_other_frequencies_than_planned_fail(source: Path, tmp_path: Path) -> None:
    out = convert(source, "rope", output=tmp_path / "out").output
    tampered(out, lambda config: config["rope_parameters"].update(factor=3.0))
    assert failed(verify(out, against=source)) == {"RoPE as planned", CONFIG}
    tampered(out, lambda config: config["rope_parameters"].update(factor=2.0, attention_factor=1.0))
    assert failed(verify(out, against=source)) == {"RoPE as planned", CONFIG}


def test_a_rope_that_was_lost_fails(source: Path, tmp_path: Path) -> None:
    """As a tool would that writes the parameters it knows and drops the rest."""
    out = convert(source, "rope", output=tmp_path / "out").output
    tampered(out, lambda config: config.update(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}))
    assert failed(verify(out, against=source)) == {*ROPE, CONFIG}
