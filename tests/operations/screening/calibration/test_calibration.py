"""Calibration of a tiny model: the choice, the guard, the files, and the refusals."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgery.anatomy import FAMILIES
from surgery.conversion import convert, make_plan, revert
from surgery.errors import PlanRefusedError, SurgeryError, UsageError
from surgery.evaluation.held_out_passages import divide, short_names
from surgery.loading import load_model, operation_modules
from surgery.operations import OPERATIONS
from surgery.operations.screening.calibration import Calibration, CalibrationSettings, calibrate, read_calibration
from surgery.operations.screening.calibration.choice import Effects, choose_by_loss, choose_by_mass
from surgery.operations.screening.calibration.guard import HeldOutLoss
from surgery.operations.screening.calibration.results import GuardedPassage
from surgery.operations.screening.rejection import counting_rejections
from tests.families import REPRESENTATIVES, VOCABULARY, families_for_the_matrix
from tests.operations.screening.calibration.conftest import with_tokenizer
from tests.tokenizers import save_tiny_tokenizer

GUARD_LOSS = "surgery.operations.screening.calibration.guard.HeldOutLoss._loss"
SETTINGS = CalibrationSettings(save="keys", lengths=(32, 64), observe=4, hold_out=2, rows=24, max_loss_increase=0.05)


@pytest.fixture(scope="module")
def calibration(source: Path, texts: Path) -> Calibration:
    return calibrate(source, [texts], settings=SETTINGS)


def test_it_rejects_keys_and_the_held_out_loss_holds(calibration: Calibration) -> None:
    assert calibration.rejected > 0.05
    assert calibration.worst <= SETTINGS.max_loss_increase
    assert [text.tokens for text in calibration.guard] == [32, 32, 64]
    assert [layer.layer for layer in calibration.layers] == [0, 1, 2]
    assert {len(layer.threshold) for layer in calibration.layers} == {4}


def test_the_converted_model_does_what_the_guard_measured(
    source: Path, texts: Path, calibration: Calibration, tmp_path: Path
) -> None:
    from surgery.data import read_documents
    from surgery.evaluation.loss.token_losses import token_losses
    from surgery.loading import load_tokenizer

    out = convert(source, "screening", calibration=calibration, output=tmp_path / "out").output
    model = load_model(out)
    passages = divide(read_documents([texts]), load_tokenizer(out), (32, 64), observe=4, hold_out=2).held_out
    for passage, text in zip(passages, calibration.guard, strict=True):
        loss = token_losses(model, torch.tensor([passage.tokens])).double().mean().item()
        assert loss == pytest.approx(text.screened, abs=1e-6)


def test_the_record_travels_and_gives_the_same_checkpoint_again(
    source: Path, calibration: Calibration, tmp_path: Path
) -> None:
    first = convert(source, "screening", calibration=calibration, output=tmp_path / "a").output
    record = read_calibration(first / "surgery" / "calibration.json")
    assert record == calibration and record.hash == calibration.hash
    block = json.loads((first / "config.json").read_text())["surgery"]["operations"][0]
    assert block["calibration"] == calibration.hash
    second = convert(source, "screening", calibration=record, output=tmp_path / "b").output
    for path in sorted(first.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path.name
    back = revert(first, output=tmp_path / "back").output
    assert (back / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert not (back / "surgery").exists()


def test_the_same_text_gives_the_same_calibration(source: Path, texts: Path, calibration: Calibration) -> None:
    assert calibrate(source, [texts], settings=SETTINGS).hash == calibration.hash


def test_windows_by_group(source: Path, texts: Path, calibration: Calibration) -> None:
    """The two query heads of a key-value head share a window, not a threshold; alone some of them differ."""
    assert any(len(set(layer.log2_window[:2])) == 2 for layer in calibration.layers)
    shared = calibrate(source, [texts], settings=SETTINGS.model_copy(update={"windows": "group"}))
    for layer in shared.layers:
        assert layer.log2_window[0] == layer.log2_window[1] and layer.log2_window[2] == layer.log2_window[3]
    assert any(len(set(layer.threshold[:2])) == 2 for layer in shared.layers)
    assert shared.settings["windows"] == "group" and shared.worst <= SETTINGS.max_loss_increase


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": "0"}, "windows by group need all heads"),
        ({"form": "unit"}, "windows has no effect for the form"),
    ],
)
def test_windows_by_group_are_refused(source: Path, texts: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        calibrate(
            source, [texts], options=options, settings=SETTINGS.model_validate({"save": "keys", "windows": "group"})
        )


def test_a_shared_window_is_the_best_for_all_its_heads_together() -> None:
    """Two heads of one group and two of another: computed by hand from the worth of each threshold and window."""
    rejected = np.zeros((1, 4, 2, 3))  # layers, heads, thresholds, windows
    rejected[0, 0] = [[0.9, 0.5, 0.0], [0.9, 0.6, 0.1]]
    rejected[0, 1] = [[0.1, 0.6, 0.0], [0.1, 0.6, 0.2]]
    rejected[0, 2] = [[0.5, 0.0, 0.0], [0.5, 0.0, 0.7]]
    rejected[0, 3] = [[0.4, 0.0, 0.0], [0.4, 0.0, 0.0]]
    effects = Effects(rejected=rejected, mass=np.zeros_like(rejected), loss_increase=np.zeros_like(rejected))
    alone, together = choose_by_loss(effects, 1.0), choose_by_loss(effects, 1.0, [2])
    assert alone.window.tolist() == [[0, 1, 2, 0]] and alone.threshold.tolist() == [[0, 0, 1, 0]]
    assert together.window.tolist() == [[1, 1, 0, 0]] and together.threshold.tolist() == [[1, 0, 0, 0]]
    assert together.rejected == pytest.approx((0.6 + 0.6 + 0.5 + 0.4) / 4)
    # By mass what one of the heads cannot afford is out for both, however much it would reject.
    dear = Effects(rejected, np.where(rejected > 0.55, 1.0, 0.0), np.zeros_like(rejected))
    assert choose_by_mass(dear, 0.5, [2]).window.tolist() == [[2, 2, 0, 0]]
    assert choose_by_mass(dear, 0.5, [2]).threshold.tolist() == [[1, 1, 0, 0]]


def test_it_does_not_matter_where_the_texts_lie(texts: Path, tmp_path: Path) -> None:
    """Neither observation nor record depends on the folder: the order of the texts once followed their whole paths."""
    from surgery.data import read_documents
    from surgery.loading import load_tokenizer

    save_tiny_tokenizer(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    found = []
    for number in range(4):
        place = Path(shutil.copytree(texts, tmp_path / str(number) / "texts"))
        documents = short_names(read_documents([place]))
        found.append(divide(documents, tokenizer, (32, 64), observe=4, hold_out=2))
    assert found[0].texts[0]["name"] == "0.txt"
    assert all(other == found[0] for other in found[1:])


def test_a_budget_of_mass(source: Path, texts: Path) -> None:
    settings = SETTINGS.model_copy(update={"budget": 0.05, "max_loss_increase": 5.0})
    wide = calibrate(source, [texts], settings=settings)
    narrow = calibrate(source, [texts], settings=settings.model_copy(update={"budget": 0.002}))
    assert 0 < narrow.rejected < wide.rejected
    assert len(wide.trials) == 1 and wide.trials[0].knob == 0.05


def a_loss_that_rises_with_the_thresholds(self: Any, tokens: torch.Tensor, *, off: bool) -> float:
    """A random model may lose nothing by screening. This one does."""
    modules: dict[str, Any] = operation_modules(self.model)
    raised = torch.stack([module.threshold for module in modules.values()]).add(1).relu().mean().item()
    return 1.0 if off else 1.0 + raised


def test_a_budget_is_lowered_where_the_loss_does_not_hold(source: Path, texts: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(GUARD_LOSS, a_loss_that_rises_with_the_thresholds)
    settings = SETTINGS.model_copy(update={"budget": 0.9, "max_loss_increase": 0.5})
    found = calibrate(source, [texts], settings=settings)
    assert found.trials[0].worst > 0.5 and len(found.trials) > 1
    assert found.worst <= 0.5


def test_the_price_settles_below_what_is_allowed(source: Path, texts: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(GUARD_LOSS, a_loss_that_rises_with_the_thresholds)
    found = calibrate(source, [texts], settings=SETTINGS.model_copy(update={"max_loss_increase": 1.2}))
    holding = [trial for trial in found.trials if trial.worst <= 1.2]
    assert len(found.trials) == 6 and 0 < len(holding) < 6
    assert found.worst == max(trial.worst for trial in holding)


@pytest.mark.parametrize("changes", [{}, {"budget": 0.9}], ids=["price", "budget"])
def test_a_loss_that_bears_next_to_nothing_is_held(
    source: Path, texts: Path, monkeypatch: Any, changes: dict[str, Any]
) -> None:
    """The loss of a random mixture of experts can jump when a router's choice changes, which no estimate predicts."""
    measure = HeldOutLoss.measure

    def jumps(self: HeldOutLoss, *, until: float | None = None) -> list[GuardedPassage]:
        return [
            replace(text, screened=text.loss + (1.0 if text.rejected > 0.01 else 0.0))
            for text in measure(self, until=None)
        ]

    monkeypatch.setattr(HeldOutLoss, "measure", jumps)
    found = calibrate(source, [texts], settings=SETTINGS.model_copy(update=changes))
    held = [trial for trial in found.trials if trial.worst <= SETTINGS.max_loss_increase]
    assert 0 < found.rejected <= 0.01
    assert found.trials[0].worst > 0.5 and len(held) >= 1
    assert len(found.trials) >= found.trials.index(held[0]) + 4, "between it and what did not hold, more is looked for"


def test_no_choice_that_holds_is_an_error(source: Path, texts: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(GUARD_LOSS, lambda *_, off: 1.0 if off else 2.0)
    with pytest.raises(SurgeryError, match="no choice keeps the loss"):
        calibrate(source, [texts], settings=SETTINGS)


def test_a_refused_family_is_refused_before_any_work(make_source: Any, texts: Path, tmp_path: Path) -> None:
    family = next(name for name in sorted(FAMILIES) if OPERATIONS["screening"].family_refusal(FAMILIES[name]))
    source = make_source(family)
    with pytest.raises(PlanRefusedError, match=f"screening cannot be applied to the family {family!r}"):
        calibrate(source, [tmp_path / "no such text"], settings=SETTINGS)


def test_chosen_layers_heads_and_sinks(source: Path, texts: Path, tmp_path: Path) -> None:
    options = {"layers": "0,2", "heads": "1,3", "sinks": 2}
    found = calibrate(source, [texts], options=options, settings=SETTINGS)
    assert [(layer.layer, len(layer.softness)) for layer in found.layers] == [(0, 2), (2, 2)]
    model = load_model(convert(source, "screening", calibration=found, output=tmp_path / "out").output)
    modules: dict[str, Any] = operation_modules(model)
    assert len(modules) == 2 and {(module.sinks, tuple(module.heads)) for module in modules.values()} == {(2, (1, 3))}


def test_it_acts_on_what_the_other_operations_of_the_plan_left(source: Path, texts: Path, tmp_path: Path) -> None:
    plan = make_plan(source, [{"name": "ssmax", "form": "bias", "start": {"bias": 0.2}}]).plan
    found = calibrate(source, [texts], before=[dict(plan.operations[0])], settings=SETTINGS)
    assert found.settings["before"] == ["ssmax"]
    alone = calibrate(source, [texts], settings=SETTINGS)
    assert found.guard[0].loss != alone.guard[0].loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": (32, 128)}, "trained at 64"),
        ({"lengths": (8,)}, "at least 16"),
        ({"max_loss_increase": -1.0}, "greater than 0"),
    ],
)
def test_wrong_settings(source: Path, texts: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError if "at least 16" in message or "greater" in message else UsageError, match=message):
        settings = CalibrationSettings.model_validate({**SETTINGS.model_dump(), **change})
        calibrate(source, [texts], settings=settings)


def test_too_little_text(source: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("one two three")
    with pytest.raises(UsageError, match=r"needs a text of 96 tokens.*held out"):
        calibrate(source, [tmp_path], settings=SETTINGS)


def test_a_word_for_layers_must_mean_those_of_the_calibration(source: Path, texts: Path) -> None:
    found = calibrate(source, [texts], options={"layers": (0,)}, settings=SETTINGS)
    with pytest.raises(PlanRefusedError, match=r"is for layers \[0\], but layers"):
        make_plan(source, [{"name": "screening", "layers": "full"}], calibration=found)


def test_what_was_calibrated_must_be_what_is_converted(source: Path, calibration: Calibration, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="differs from the calibration"):
        convert(source, "screening", sinks=3, calibration=calibration, output=tmp_path / "out")
    with pytest.raises(UsageError, match="not among the operations"):
        convert(source, "ssmax", calibration=calibration, output=tmp_path / "out")
    pending = make_plan(source, [{"name": "screening", "calibration": "pending"}])
    from surgery.conversion import execute

    with pytest.raises(PlanRefusedError, match="need a calibration"):
        execute(pending, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_progress_reaches_its_end(source: Path, texts: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    calibrate(source, [texts], settings=SETTINGS, on_progress=lambda *step: seen.append(step))
    assert all(before[0] <= after[0] for before, after in itertools.pairwise(seen))
    assert all(done <= total for done, total, _ in seen)


# Embeddings scaled in place, n handed over the layers' heads, heads that pass by the base model, and the like.
QUICK = (*REPRESENTATIVES, "ctrl", "falcon_h1", "modernbert-decoder", "opt", "solar_open", "stablelm")


@pytest.mark.parametrize("family", families_for_the_matrix(QUICK))
def test_every_family(make_source: Any, texts: Path, tmp_path: Path, family: str) -> None:
    source = with_tokenizer(make_source(family), tmp_path)
    settings = CalibrationSettings(save="keys", lengths=(48,), observe=2, hold_out=1, rows=16, max_loss_increase=0.05)
    try:
        found = calibrate(source, [texts], options={"layers": "all"}, settings=settings)
        done = convert(source, "screening", calibration=found, output=tmp_path / "out")
    except PlanRefusedError as refusal:
        assert f"screening cannot be applied to the family {family!r}" in refusal.message
        return
    layers = list(done.plan.operations[0]["layers"])
    model = load_model(done.output)
    ids = torch.randint(3, VOCABULARY, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), counting_rejections(model) as counts:
        logits = model(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, logits)
    assert sorted(counts.shares()) == layers and 0 < counts.total() < 1


@pytest.mark.parametrize("family", ["gemma3", "llama4", "mistral3", "qwen2_5_vl"])
def test_the_language_layers_of_a_model_of_several_parts(
    make_source: Any, texts: Path, tmp_path: Path, family: str
) -> None:
    source = with_tokenizer(make_source(family), tmp_path)
    found = calibrate(source, [texts], settings=SETTINGS)
    assert found.rejected > 0.05 and found.worst <= SETTINGS.max_loss_increase
    model = load_model(convert(source, "screening", calibration=found, output=tmp_path / "out").output)
    modules = operation_modules(model)
    assert len(modules) == len(found.layers)
    assert all("language_model." in name and "vision" not in name for name in modules)


@pytest.mark.parametrize("given", [{"start": {"softness": 0.1}}, {"open": True}])
def test_start_values_beside_a_calibration_are_refused_before_it_runs(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(given))} has no effect: the calibration chooses"):
        OPERATIONS["screening"].uncalibrated({"name": "screening", **given})
