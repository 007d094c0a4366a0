"""Controls: the same run on the untouched model and with constants, and the comparison of all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgery.checkpoint import open_checkpoint
from surgery.data import collate
from surgery.errors import PlanRefusedError
from surgery.loading import RunOptions, load_model
from surgery.recovery import finetune, read_recipe
from surgery.recovery.comparison import compare
from surgery.recovery.controls import apply_control
from surgery.recovery.layout import Layout
from surgery.recovery.lora import prepare_model
from surgery.recovery.parameters import choose_trained
from surgery.training.logits import token_logits
from tests.recovery.conftest import Converted, MakeRecipe
from tests.recovery.test_training import _rows


def _loaded(folder: Path) -> tuple[Any, Layout]:
    return load_model(folder, RunOptions(device="cpu")), Layout(open_checkpoint(folder).config)


@pytest.mark.parametrize("variant", ["untouched", "temperature"])
def test_controls_start_as_the_source(converted: Converted, variant: Any) -> None:
    paper = converted(form="paper", scale=1.5, spread=0.4)
    model, layout = _loaded(paper)
    batch = collate(_rows())
    source = load_model(paper.parent / "source", RunOptions(device="cpu"))
    with torch.no_grad():
        expected = token_logits(source, batch)
        assert not torch.allclose(token_logits(model, batch), expected, atol=1e-2)
        apply_control(model, variant, layout)
        assert torch.allclose(token_logits(model, batch), expected, atol=1e-5)


def test_temperature_is_one_constant_per_head(converted: Converted, make_recipe: MakeRecipe) -> None:
    model, layout = _loaded(converted(form="paper", scale=1.5, spread=0.4))
    numbers = sum(p.numel() for name, p in model.named_parameters() if "ssmax" in name)
    apply_control(model, "temperature", layout)
    recipe = read_recipe(make_recipe(train={"what": "scale+lora"}))
    prepared = prepare_model(model, recipe, layout, "temperature")
    scale_only = read_recipe(make_recipe())
    names = choose_trained(prepared, scale_only, layout, "temperature")
    assert sum(dict(prepared.named_parameters())[name].numel() for name in names) == numbers
    assert all(name.endswith("bias") for name in names)
    module = prepared.base_model.model.model.layers[1].self_attn.ssmax
    with torch.no_grad():
        for name in names:
            dict(prepared.named_parameters())[name].fill_(0.7)
        multiplier = module(torch.tensor([[1.0, 5.0, 900.0]]))
    assert torch.equal(multiplier, torch.full_like(multiplier, 0.7)), "whatever the length"


@pytest.mark.parametrize("what", ["scale", "scale+lora", "full"])
def test_side_by_side(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path, what: str) -> None:
    paper = converted(form="paper", scale=1.5, spread=0.4)
    recipe = make_recipe(
        paper,
        control=["untouched", "temperature"],
        train={"what": what, **({"rank": 2} if what == "scale+lora" else {})},
        optimizer={} if what == "scale" else {"lr": 1e-3},
    )
    events: list[dict[str, Any]] = []
    result = finetune(recipe, on_progress=events.append)
    comparison = result.comparison
    assert comparison is not None
    models = {model.name: model for model in comparison.models}
    assert list(models) == ["source", "converted", "recovered", "untouched", "temperature"]
    learned = {name: model.learned for name, model in models.items()}
    assert learned["recovered"] == learned["temperature"] == sum(result.plan.parameters.values())
    assert learned["untouched"] == learned["recovered"] - 12
    losses = {name: model.loss.value for name, model in models.items() if model.loss}
    assert losses["converted"] == result.held_out_loss_before and losses["recovered"] == result.held_out_loss_after
    # The untouched model is the source checkpoint, measured here on its own.
    steps = {event.get("control"): event["step"] for event in events if event["event"] == "step"}
    if what == "scale":
        assert losses["untouched"] == losses["source"] and "the source model" in str(models["untouched"].note)
        assert steps == {None: 4, "temperature": 4}
    else:
        assert losses["untouched"] != losses["source"]
        assert steps == {None: 4, "untouched": 4, "temperature": 4}
    for difference in comparison.differences:
        value = losses[difference.of] - losses[difference.minus]
        assert difference.difference.value == pytest.approx(value, abs=1e-9)
    assert comparison.difference("recovered", "untouched") is not None
    # The same numbers in the record, and the control's own log.
    entry = json.loads((tmp_path / "out" / "surgery" / "history.json").read_text())["entries"][0]
    assert entry["comparison"] == json.loads(json.dumps(comparison.to_dict()))
    rows = [json.loads(line) for line in (tmp_path / "out" / "surgery" / entry["log-temperature"]).open()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    own = [json.loads(line) for line in (tmp_path / "out" / "surgery" / "log.jsonl").open()]
    assert [row["tokens"] for row in rows if "loss" in row] == [row["tokens"] for row in own if "loss" in row]
    assert not (tmp_path / "out.training").exists()


def test_controls_resume(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(control="temperature", checkpoints={"every": 2})

    class CrashError(Exception):
        pass

    def crash(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event.get("control") and event["step"] == 3:
            raise CrashError

    with pytest.raises(CrashError):
        finetune(recipe, on_progress=crash)
    steps: list[tuple[Any, int]] = []

    def note(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            steps.append((event.get("control"), event["step"]))

    resumed = finetune(recipe, resume=True, on_progress=note)
    assert steps == [("temperature", 3), ("temperature", 4)], "the model itself is not trained again"
    plain = finetune({**recipe, "output": str(tmp_path / "plain")})
    assert resumed.comparison == plain.comparison


def test_a_control_that_diverges_is_a_result(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgery.recovery import DivergedError
    from surgery.recovery.model_run import ModelRun

    run = ModelRun.run

    def poisoned(self: Any, start: Any) -> Any:
        if self.variant == "temperature":
            raise DivergedError("Step 2: the loss became nan")
        return run(self, start)

    monkeypatch.setattr(ModelRun, "run", poisoned)
    result = finetune(make_recipe(control="temperature"))
    assert result.comparison is not None
    model = next(model for model in result.comparison.models if model.name == "temperature")
    assert model.loss is None and model.note == "Step 2: the loss became nan"
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("form", ["logn", "constant"])
def test_no_constant_for_what_does_not_change_with_length(
    make_recipe: MakeRecipe, converted: Converted, form: str
) -> None:
    recipe = make_recipe(converted(form=form), train={"what": "scale+lora"}, control="temperature")
    with pytest.raises(PlanRefusedError, match=f"{form} has none"):
        finetune(recipe, dry_run=True)


def test_intervals_are_paired() -> None:
    """Documents differ much more than the two models do: only pairs see that."""
    chance = np.random.default_rng(0)
    source = [chance.normal(level, 0.1, size) for level, size in zip(range(1, 9), range(5, 45, 5), strict=True)]
    better = [losses - 0.01 for losses in source]
    comparison = compare({"source": source, "converted": source, "recovered": better}, {"recovered": 3}, {})
    assert comparison is not None and comparison.documents == 8
    difference = comparison.difference("recovered", "source")
    assert difference is not None and difference.difference.value == pytest.approx(-0.01)
    assert difference.difference.low == pytest.approx(-0.01) and difference.difference.high == pytest.approx(-0.01)
    loss = comparison.models[0].loss
    assert loss is not None and loss.low is not None and loss.high is not None and loss.high - loss.low > 0.5
    same = comparison.difference("converted", "source")
    assert same is not None and same.difference.value == 0
    assert compare({}, {}, {}) is None
