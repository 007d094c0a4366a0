"""A run on recall data: answers are learned, the rest is held; a crash changes no bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surgery.checkpoint import open_checkpoint
from surgery.conversion import convert
from surgery.data import collate, make_rows
from surgery.errors import PlanRefusedError
from surgery.loading import RunOptions, load_model
from surgery.recovery import finetune, read_recipe
from surgery.recovery.controls import apply_control
from surgery.recovery.layout import Layout
from surgery.recovery.parameters import operation_parameters
from surgery.recovery.stage_hooks import stage_hooks
from surgery.recovery.teacher_choice import kept_operations
from surgery.recovery.teachers import SameWeights
from surgery.training.objectives import Hold
from tests.recovery.conftest import Converted, MakeRecipe, crash


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    for number in range(4):
        text = "\n\n".join(f"Page {number} says {line} things of mills." for line in range(40))
        (folder / f"{number}.txt").write_text(text)
    return folder


def _recipe(make_recipe: MakeRecipe, pages: Path, **sections: Any) -> dict[str, Any]:
    source = {"kind": "recall", "path": str(pages), "lengths": [260, 300], "facts": [1, 3], "haystacks": 3}
    recipe = make_recipe(objective={"name": "hold"}, identity={"weight": 0.5}, batch={"sequences": 1}, **sections)
    recipe["data"] = {"sources": [source], "held_out": 0.3, "sequence_length": 300, "packing": False}
    return recipe


def _learned(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for shard in folder.glob("*.safetensors")
        for name, tensor in load_file(shard).items()
        if ".ssmax." in name
    }


@pytest.mark.parametrize("streaming", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_and_its_control_and_the_same_bits_after_a_crash(
    make_recipe: MakeRecipe, pages: Path, tmp_path: Path, streaming: bool
) -> None:
    recipe = _recipe(make_recipe, pages, control="temperature", checkpoints={"every": 2})
    recipe["data"]["streaming"] = streaming
    result = finetune(recipe)
    assert result.steps == 4 and result.comparison is not None
    assert {row.name for row in result.comparison.models} >= {"source", "recovered", "temperature"}
    whole = _learned(tmp_path / "out")
    assert whole and all(tensor.abs().max() > 0 for tensor in whole.values())
    again = {**recipe, "output": str(tmp_path / "again")}
    crash(again, step=3)
    assert finetune(again, resume=True).resumed_from == 2
    for name, tensor in _learned(tmp_path / "again").items():
        assert torch.equal(tensor, whole[name]), name


@pytest.mark.parametrize("variant", ["operated", "temperature"])
def test_the_price_is_the_mean_square_of_the_multipliers_minus_one(
    converted: Converted, make_recipe: MakeRecipe, variant: Any
) -> None:
    folder = converted()  # anchored, N = 64
    model, layout = load_model(folder, RunOptions(device="cpu")), Layout(open_checkpoint(folder).config)
    apply_control(model, variant, layout)
    with torch.no_grad():
        for parameter in operation_parameters(model).values():
            parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel()))
    recipe = read_recipe(make_recipe(identity={"weight": 0.5, "lengths": [64, 640]}))
    (hooks,) = [own for own in stage_hooks(model, layout, recipe) if own.term == "identity"]
    found = hooks.extra_loss()
    assert found is not None and found.requires_grad
    expected = []
    for parameter in operation_parameters(model).values():
        for value in parameter.tolist():
            moved = [value - 1, value - 1] if variant == "temperature" else [0.0, value * math.log(10)]
            expected += [number**2 for number in moved]
    assert found.item() == pytest.approx(0.5 * sum(expected) / len(expected), rel=1e-5)


def test_a_price_without_parameters_is_refused(converted: Converted, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(converted(form="logn"), identity={}, train={"what": "scale+lora"})
    with pytest.raises(PlanRefusedError, match="identity does nothing: the form logn has no learned parameter"):
        finetune(recipe, dry_run=True)


def test_a_plan_needs_no_torch_model(make_recipe: MakeRecipe, pages: Path) -> None:
    plan = finetune(_recipe(make_recipe, pages), dry_run=True).plan
    assert plan.steps == 4 and plan.train_tokens > 1000


def test_the_text_is_held_to_the_model_with_the_new_positions(
    make_recipe: MakeRecipe, converted: Converted, pages: Path, tmp_path: Path
) -> None:
    """Rows beyond the source's positions, which the source itself could not teach."""
    source = converted().parent / "source"
    positions = json.loads((source / "config.json").read_text())["max_position_embeddings"]
    assert positions < 300
    operations = [{"name": "rope", "factor": 8}, {"name": "ssmax", "form": "anchored", "reference_length": 64}]
    recipe = {**_recipe(make_recipe, pages), "model": str(source), "operations": operations}
    plan = finetune(recipe, dry_run=True).plan
    assert plan.teacher == "the same weights, operation and adapter off; rope stays on"
    with pytest.raises(PlanRefusedError, match=f"the source model has {positions} positions, so it cannot teach"):
        finetune({**recipe, "objective": {"name": "distill"}}, dry_run=True)

    out = convert(source, operations, output=tmp_path / "both").output
    model = load_model(out, RunOptions(device="cpu"))
    kept = kept_operations(read_recipe(recipe).stage_recipes(), Layout(open_checkpoint(out).config))
    row = make_rows([list(range(5, 60)) * 5], 275, packing=False, predicted=[[False] * 272 + [True] * 3])
    held = Hold(name="hold", weight=1.0)
    batch = collate(row)
    # At the start only the answers cost anything; against the source's positions the text would cost too.
    answers = held.total(model, {**batch}, SameWeights(kept)).item()
    assert answers == pytest.approx(Hold(name="hold", weight=5.0).total(model, batch, SameWeights(kept)).item())
    assert held.total(model, batch, SameWeights()).item() > answers + 1e-4


def test_two_teachers_with_other_positions_are_refused(make_recipe: MakeRecipe, converted: Converted) -> None:
    recipe = make_recipe(
        converted().parent / "source",
        operations=[{"name": "rope", "factor": 8}, {"name": "ssmax", "form": "anchored"}],
        stages=[{"objective": {"name": name}, "budget": {"steps": 1}} for name in ("hold", "distill")],
    )
    with pytest.raises(PlanRefusedError, match="hold needs a teacher with the model's positions, distill one"):
        finetune(recipe, dry_run=True)
