"""The work of a trial fits into its minutes, and what is left out is said."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from surgery.errors import PlanRefusedError, UsageError
from surgery.loading import RunOptions
from surgery.loading.pace import Pace
from surgery.trial import plan
from surgery.trial.preparation import Preparation, prepare


@pytest.fixture(scope="module")
def prepared(source: Path, texts: Path) -> Preparation:
    return prepare(source, [texts], 512, None, RunOptions())


@pytest.fixture(autouse=True)
def _pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "measure_pace", lambda: Pace(products=1e9, reading=1e9))


def test_the_work_shrinks_until_it_fits(prepared: Preparation) -> None:
    full = plan.make_plan(prepared, 1e6)
    assert [step.name for step in full.steps] == ["inspect", "constant", "bias", "windows", "measure"]
    assert full.effort == plan.EFFORTS[0] and full.left_out == ()
    minutes = full.seconds / 60
    seen = [plan.make_plan(prepared, share * minutes) for share in (0.99, 0.8, 0.65)]
    for one in seen:
        assert one.seconds <= one.minutes * 60 and one.effort.samples < 16
        assert "of 16 measured texts" in one.left_out[0]
    assert seen[0].seconds > seen[-1].seconds
    least = plan._steps(prepared, 512, plan.EFFORTS[-1], plan.model_size(prepared.checkpoint), plan.Slowness())
    assert plan.EFFORTS[-1].samples == 8, "fewer could not say that something gains"
    with pytest.raises(UsageError, match=r"a trial at 512 tokens takes .* at least, more than --minutes") as caught:
        plan.make_plan(prepared, 0.9 * sum(step.seconds for step in least) / 60)
    assert "--minutes" in str(caught.value.hint) and "--length: 256" in str(caught.value.hint)
    with pytest.raises(UsageError, match="at least, more than --minutes") as caught:
        plan.make_plan(replace(prepared, lengths=(256,)), 1e-9)
    assert "--minutes" in str(caught.value.hint) and "--length" not in str(caught.value.hint)


def test_a_slow_model_gets_less_work_and_a_second_form_is_cheaper(prepared: Preparation) -> None:
    full = plan.make_plan(prepared, 1e6)
    minutes = 1.01 * full.seconds / 60
    assert plan.make_plan(prepared, minutes, plan.Slowness(0.5, 0.5)).effort == plan.EFFORTS[0]
    for slow in (plan.Slowness(1.2, 1.0), plan.Slowness(1.0, 1.2)):
        assert plan.make_plan(prepared, minutes, slow).effort != plan.EFFORTS[0]
    seconds = {step.name: step.seconds for step in full.steps}
    assert 0 < seconds["bias"] < 0.8 * seconds["constant"]
    assert plan.read_plan(full.to_dict()) == full


def test_without_a_length_the_longest_that_fits_is_taken(prepared: Preparation) -> None:
    both = replace(prepared, lengths=(1024, 512))
    assert plan.make_plan(both, 1e6).length == 1024
    least = plan._steps(both, 1024, plan.EFFORTS[-1], plan.model_size(both.checkpoint), plan.Slowness())
    shorter = plan.make_plan(both, 0.95 * sum(step.seconds for step in least) / 60)
    assert shorter.length == 512 and any("texts of 1,024 tokens: they take" in line for line in shorter.left_out)


@pytest.mark.parametrize(
    ("given", "length", "message", "hint"),
    [
        ({}, 4096, "--length 4096: the model was trained at 1024 tokens", "--to rope --type yarn --factor 4"),
        ({}, 100, "--length 100: a trial needs at least 256 tokens", "256"),
        ({"words": "few words"}, 512, "has 9 tokens, and none leaves 512 to measure on", "longer texts"),
        ({"words": "a line\n" * 300}, None, "to calibrate on has 1,400 tokens", "longer texts"),
        ({"text": []}, None, "no text was given", "--text"),
    ],
)
def test_wrong_inputs_are_refused_before_anything_runs(
    source: Path, texts: Path, tmp_path: Path, given: dict[str, Any], length: int | None, message: str, hint: str
) -> None:
    text = given.get("text", [texts])
    if "words" in given:
        (tmp_path / "words.txt").write_text(given["words"])
        text = [tmp_path / "words.txt"]
    with pytest.raises(UsageError) as caught:
        prepare(source, text, length, None, RunOptions())
    assert message in caught.value.message and hint in str(caught.value.hint)
    assert "MODEL" not in str(caught.value.hint), "a command names the model that was given"


def test_a_converted_model_and_a_refused_family_are_refused(source: Path, texts: Path, tmp_path: Path) -> None:
    from surgery.conversion import convert
    from tests.anatomy.builders import bare_source

    converted = convert(source, "ssmax", output=source.parent / "converted").output
    with pytest.raises(PlanRefusedError, match="is converted already") as caught:
        prepare(converted, [texts], None, None, RunOptions())
    assert f"surgery evaluate {converted} --against {source}" in str(caught.value.hint)
    refused = bare_source(tmp_path / "refused")
    config = refused / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"qwen"'))
    with pytest.raises(PlanRefusedError):
        prepare(refused, [texts], None, None, RunOptions())


def test_an_operation_that_a_family_cannot_have_is_left_out(prepared: Preparation, monkeypatch: Any) -> None:
    from surgery.operations import OPERATIONS
    from surgery.trial import preparation

    monkeypatch.setattr(type(OPERATIONS["screening"]), "family_refusal", lambda self, family: "it has learned sinks")
    tried, refused = preparation._candidates(prepared.anatomy)
    assert [one.name for one in tried] == ["constant", "bias"] and "learned sinks" in refused["screening"]
    monkeypatch.setattr(type(OPERATIONS["ssmax"]), "family_refusal", lambda self, family: "it scales its queries")
    with pytest.raises(PlanRefusedError, match=r"scales its queries.*learned sinks"):
        preparation._candidates(prepared.anatomy)


def test_a_trial_calibrates_layers_that_a_calibration_takes_and_a_conversion_skips(tmp_path: Path) -> None:
    from surgery.anatomy import read_anatomy
    from surgery.checkpoint import open_checkpoint
    from surgery.trial import preparation
    from tests.anatomy.builders import bare_source

    folder = bare_source(tmp_path / "model", "mistral", sliding_window=16)  # every layer slides
    tried, refused = preparation._candidates(read_anatomy(open_checkpoint(folder)))
    assert [one.name for one in tried] == ["constant", "bias"] and "sliding window" in refused["screening"]


def test_the_control_of_windows_has_as_large_a_cache(prepared: Preparation) -> None:
    """Keys are counted here one by one, for windows that are set by hand."""
    from surgery.operations import OPERATIONS

    operation, anatomy = OPERATIONS["screening"], prepared.anatomy
    widths = [[16, 16, 200, 200], [64, 64, 32, 32], [128, 128, 4096, 4096]]  # two query heads share a window
    layers = [
        SimpleNamespace(layer=number, log2_window=[math.log2(width) for width in own])
        for number, own in enumerate(widths)
    ]
    calibration = SimpleNamespace(layers=layers, settings={"heads": None, "full_window": 1024, "sinks": 4})
    kept = sum(min(512, width + 4) for own in widths for width in own[::2])
    assert operation.kept_cache(calibration, anatomy, 512) == pytest.approx(kept / (6 * 512))
    options = operation.derived_options(calibration, anatomy, 512)
    window = round(2 ** options["start"]["log2_window"])
    assert 0 <= kept - 6 * (window + 4) < 6 and options["sinks"] == 4
