"""Recipes with operations: from a source to a trained checkpoint; with a change of RoPE too."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.checkpoint import load_json
from surgery.conversion import convert
from surgery.errors import PlanRefusedError, SurgeryError
from surgery.loading import load_model, operations_off
from surgery.recovery import finetune
from surgery.recovery.errors import RecipeError
from surgery.recovery.recipe_file import dump_recipe, read_recipe
from surgery.recovery.teachers import original
from surgery.training.logits import token_logits
from surgery.verification import verify
from tests.conversion.conftest import tree
from tests.recovery.conftest import Converted, MakeRecipe, crash

ROPE = {"name": "rope", "factor": 2}
SSMAX = {"name": "ssmax", "layers": "0-1"}
LORA = {"what": "scale+lora", "rank": 2}


@pytest.fixture
def source(converted: Converted) -> Path:
    return converted().parent / "source"


def test_converting_in_the_recipe_is_converting_before_it(
    make_recipe: MakeRecipe, source: Path, tmp_path: Path
) -> None:
    """The same losses and the same bytes, whichever way; a dry run plans the same and writes nothing."""
    before = tree(source)
    ready = convert(source, [ROPE, SSMAX], output=tmp_path / "ready").output
    finetune(make_recipe(ready, train=LORA, output=str(tmp_path / "second")))
    recipe = make_recipe(source, train=LORA, operations=[ROPE, SSMAX])
    dry = finetune(recipe, dry_run=True)
    assert {path.name for path in tmp_path.iterdir()} == {"ready", "second"}
    measured = finetune(recipe, dry_run=True, measure=True)
    assert {path.name for path in tmp_path.iterdir()} == {"ready", "second"}
    assert measured.plan.estimate is not None
    result = finetune(recipe)
    assert (dry.plan.parameters, dry.plan.steps) == (result.plan.parameters, result.plan.steps)
    first, second = tree(tmp_path / "out"), tree(tmp_path / "second")
    differing = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
    # What they were made from has another name; times, and what holds the recipe.
    assert not {name for name in differing if name.endswith(".safetensors") and "adapter" not in name}
    assert first["config.json"] == second["config.json"] and first["surgery/plan.json"] == second["surgery/plan.json"]
    assert tree(source) == before and not list(tmp_path.glob("*.training"))


@pytest.mark.parametrize("family", ["gpt2", "ctrl", "dbrx", "nemotron_h", "opt"])
def test_families_that_spell_their_sizes_in_their_own_way(
    make_recipe: MakeRecipe, converted: Converted, tmp_path: Path, family: str
) -> None:
    """Layers can be chosen, and the memory of the layers is part of the estimate."""
    out = convert(converted(family, by_hand=False), output=tmp_path / "model").output
    plan = finetune(make_recipe(out, train={"what": "scale", "layers": "0"}), dry_run=True).plan
    assert plan.layers == (0,) and plan.parameters == {"scale": 4}
    layers = {"gpt2": 3, "ctrl": 3, "dbrx": 3, "nemotron_h": 4, "opt": 3}[family]
    inner = {"gpt2": 4 * 32, "ctrl": 8192, "dbrx": 24}.get(family, 48)
    tokens, logits = 2 * 48, 2 * 2 * 48 * 260 * 4
    assert plan.memory.activations == logits + layers * tokens * 4 * (10 * 32 + 3 * inner)


def test_it_resumes_exactly(make_recipe: MakeRecipe, source: Path, tmp_path: Path) -> None:
    recipe = make_recipe(source, train=LORA, operations=[ROPE, SSMAX], checkpoints={"every": 1})
    finetune({**copy.deepcopy(recipe), "output": str(tmp_path / "undisturbed")})
    crash(recipe, step=2)
    finetune(recipe, resume=True)
    for name in ("trained-model.safetensors", "surgery-operations.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name


def test_rope_alone_trains_with_the_stock_class(make_recipe: MakeRecipe, source: Path, tmp_path: Path) -> None:
    """Full training, an adapter, and a control that has the source's RoPE."""
    result = finetune(make_recipe(source, train={"what": "full"}, operations=[ROPE], control=True))
    assert result.comparison is not None
    losses = {model.name: model.loss.value for model in result.comparison.models if model.loss is not None}
    assert len({round(losses[name], 6) for name in ("source", "converted", "recovered", "untouched")}) == 4
    out = tmp_path / "out"
    assert type(load_model(out)).__name__ == "LlamaForCausalLM"
    assert load_json(out / "config.json")["max_position_embeddings"] == 128
    checked = verify(out, against=source, length=32)
    assert checked.failed == ()
    finetune(make_recipe(source, train=LORA, operations=[ROPE], output=str(tmp_path / "lora")))
    assert (tmp_path / "lora" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_teacher_is_the_source_with_its_own_rope(make_recipe: MakeRecipe, source: Path, tmp_path: Path) -> None:
    from surgery.recovery.layout import Layout
    from surgery.recovery.lora import prepare_model

    out = convert(source, [ROPE, {**SSMAX, "form": "paper"}], output=tmp_path / "made").output
    recipe = read_recipe(make_recipe(out, train=LORA, objective={"name": "distill"}))
    model = prepare_model(load_model(out), recipe, Layout(load_json(out / "config.json")))
    ids = torch.arange(3, 40)[None]
    batch = {"input_ids": ids, "position_ids": torch.arange(37)[None]}
    with torch.no_grad():
        expected = token_logits(load_model(source), batch)
        on = token_logits(model, batch)
        with original(model):
            assert torch.equal(token_logits(model, batch), expected)
        assert torch.equal(token_logits(model, batch), on) and (on - expected).abs().max() > 1e-3
    result = finetune(recipe)
    assert "same weights" in str(result.plan.teacher)


REFUSED: list[tuple[list[Any], dict[str, Any], str]] = [
    ([ROPE], {}, "rope yarn added no parameters"),
    ([ROPE, {"name": "ssmax", "form": "logn"}], {}, "rope yarn and ssmax logn added no parameters|ssmax logn and rope"),
    ([ROPE, SSMAX], {"objective": {"name": "match"}}, "with its rotary positions"),
    ([ROPE], {"objective": {"name": "match"}, "train": LORA}, "with its rotary positions"),
    (
        [ROPE, SSMAX],
        {"objective": {"name": "distill"}, "data": {"sequence_length": 65}},
        "the source model has 64 positions",
    ),
    ([ROPE], {"train": LORA, "control": "temperature"}, "rope has none"),
]


@pytest.mark.parametrize(("operations", "sections", "said"), REFUSED)
def test_what_cannot_be_learned_is_refused(
    make_recipe: MakeRecipe, source: Path, operations: list[Any], sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(PlanRefusedError, match=said) as caught:
        finetune(make_recipe(source, operations=operations, **sections))
    assert caught.value.exit_code == 3 and caught.value.hint


def test_a_constant_beside_the_changed_rope(make_recipe: MakeRecipe, source: Path) -> None:
    result = finetune(make_recipe(source, operations=[ROPE, SSMAX], train=LORA, control="temperature"))
    assert result.comparison is not None and result.comparison.difference("recovered", "temperature") is not None


@pytest.mark.parametrize(
    ("operations", "said"),
    [
        ([{"name": "rope", "factr": 3}], r"operations.0.factr.*did you mean `factor`"),
        ([{"name": "softmin"}], "operations.0: unknown name 'softmin'; one of"),
        ([{"name": "rope", "type": "theta"}], "exactly one of theta and theta_factor"),
        ([{"name": "rope", "factor": 1}], "operations.0.factor: .*greater than 1"),
    ],
)
def test_faults_of_operations_are_named(make_recipe: MakeRecipe, source: Path, operations: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_recipe(make_recipe(source, operations=operations))


def test_an_adapter_alone_needs_a_base_that_stays(make_recipe: MakeRecipe, source: Path) -> None:
    with pytest.raises(SurgeryError, match="convert the model first"):
        read_recipe(make_recipe(source, operations=[SSMAX], train={**LORA, "merge": False}))


def test_recipes_with_operations_are_dumped_as_they_were(make_recipe: MakeRecipe, source: Path, tmp_path: Path) -> None:
    recipe = read_recipe(make_recipe(source, operations=[{**ROPE, "layers": "0-2"}, SSMAX]))
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
    assert read_recipe(tmp_path / "r.yaml").operations == recipe.operations


def test_switching_off_within_switching_off(source: Path, tmp_path: Path) -> None:
    out = convert(source, [ROPE, SSMAX], output=tmp_path / "made").output
    model, ids = load_model(out), torch.arange(3, 40)[None]
    with torch.no_grad():
        on = model(ids).logits
        with operations_off(model):
            off = model(ids).logits
            with operations_off(model):
                assert torch.equal(model(ids).logits, off)
            assert torch.equal(model(ids).logits, off)
        assert torch.equal(model(ids).logits, on) and not torch.equal(on, off)
