"""Stages, and the objectives that they use: one run, exact across its borders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surgery.data import collate
from surgery.loading import RunOptions, load_model
from surgery.loading.caches import named
from surgery.recovery import finetune, read_recipe
from surgery.recovery.layout import Layout
from surgery.recovery.lora import prepare_model
from surgery.recovery.parameters import choose_trained, operation_parameters
from surgery.recovery.teachers import SameWeights, SecondCopy, original
from surgery.training.losses import matched_sum
from tests.recovery.conftest import Converted, MakeRecipe, crash, objective_sum
from tests.recovery.test_training import _draw, _rows


def _stages(make_recipe: MakeRecipe, model: Path) -> dict[str, Any]:
    return make_recipe(
        model,
        train={"what": "scale+lora", "rank": 2, "dropout": 0.2},
        optimizer={"lr": 1e-2},
        checkpoints={"every": 2, "keep": 2},
        evaluation={"every": 2},
        stages=[
            {"name": "layers", "train": {"what": "scale"}, "objective": {"name": "match"}, "budget": {"steps": 3}},
            {"objective": {"name": "distill"}, "data": {"sequence_length": 24}, "budget": {"steps": 3}},
            {"budget": {"tokens": 150}, "optimizer": {"schedule": "constant", "lr": 1e-3}},
        ],
    )


def _log(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "surgery" / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


# 4 crosses the border: the checkpoint it goes on from is the last of the first stage.
@pytest.mark.parametrize("at", [4, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 3, 6, 7))])
def test_resume_across_stages_is_exact(
    make_recipe: MakeRecipe, converted: Converted, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, at: int
) -> None:
    recipe = _stages(make_recipe, converted(form="paper", scale=1.5, spread=0.4))
    plain = finetune({**recipe, "output": str(tmp_path / "plain")})
    assert [stage.steps for stage in plain.plan.stages][:2] == [3, 3] and plain.steps == plain.plan.steps >= 7

    crash(recipe, step=at)
    resumed = finetune(recipe, resume=True)
    assert resumed.resumed_from == {1: None, 3: 2, 4: 3, 6: 5, 7: 6}[at]
    assert _log(tmp_path / "out") == _log(tmp_path / "plain")
    for name in ("surgery-ssmax.safetensors", "trained-model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert resumed.comparison == plain.comparison


def test_each_stage_is_its_own(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    result = finetune(_stages(make_recipe, converted(form="paper", scale=1.5, spread=0.4)))
    rows = [row for row in _log(tmp_path / "out") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, result.steps + 1))
    assert [row.get("stage", 1) for row in rows[:6]] == [1, 1, 1, 2, 2, 2] and rows[6]["stage"] == 3
    assert [set(row["learning_rates"]) for row in rows[2:4]] == [{"scale"}, {"scale", "weights"}]
    assert rows[6]["learning_rates"]["weights"] == 1e-3
    assert [stage.objective for stage in result.plan.stages] == ["match", "distill", "next_token"]
    assert [stage.sequence_length for stage in result.plan.stages] == [48, 24, 48]
    assert result.plan.parameters.keys() == {"scale", "weights"} and result.plan.stages[0].parameters.keys() == {
        "scale"
    }
    entry = json.loads((tmp_path / "out" / "surgery" / "history.json").read_text())["entries"][0]
    assert entry["trained"] == "scale then scale+lora" and entry["objective"] == "match then distill then next_token"
    assert entry["teacher"] == "the same weights, operation and adapter off"


def test_match_fits_each_layer_alone(make_recipe: MakeRecipe, converted: Converted) -> None:
    """The error is that of each attention against itself switched off, on what reaches it in the original."""
    folder = converted(form="paper", scale=1.5, spread=0.4)
    model = _draw(load_model(folder, RunOptions(device="cpu")))
    batch = collate(_rows())
    total = matched_sum(model, batch, SameWeights())
    total.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in operation_parameters(model).items()}
    assert all(gradient.abs().min() > 0 for gradient in gradients.values())

    # By hand: the hidden states of the stock model, each attention called on its own.
    source = load_model(folder.parent / "source", RunOptions(device="cpu"))
    with torch.no_grad():
        hidden = source(**{key: batch[key] for key in ("input_ids", "position_ids")}, output_hidden_states=True)
    expected = torch.zeros(())
    counted = batch["labels"] != -100
    from transformers.masking_utils import create_causal_mask

    mask = create_causal_mask(
        config=source.config,
        inputs_embeds=hidden.hidden_states[0],
        attention_mask=None,
        position_ids=batch["position_ids"],
        **named(None),
    )
    for layer in range(3):
        inputs = source.model.layers[layer].input_layernorm(hidden.hidden_states[layer])
        rotary = source.model.rotary_emb(inputs, batch["position_ids"])
        own = model.model.layers[layer].self_attn
        visible = (batch["position_ids"] + 1).float()
        target, _ = source.model.layers[layer].self_attn(inputs, rotary, mask)
        output, _ = own(inputs, rotary, mask, surgery_visible_keys=visible)
        expected = expected + ((output - target).square().mean(-1) * counted).sum() / 3
    assert total.item() == pytest.approx(expected.item(), rel=1e-4)

    # A later layer does not change what an earlier one learns, nor the other way round.
    with torch.no_grad():
        model.model.layers[0].self_attn.ssmax.scale.mul_(3)
    model.zero_grad()
    matched_sum(model, batch, SameWeights()).backward()
    last = "model.layers.2.self_attn.ssmax.scale"
    assert torch.allclose(dict(model.named_parameters())[last].grad, gradients[last], rtol=1e-5)
    # Switched off there is nothing to match.
    with original(model):
        assert matched_sum(model, batch, SameWeights()).item() == pytest.approx(0, abs=1e-9)


def test_match_learns(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    recipe = make_recipe(
        converted(form="paper", scale=1.5, spread=0.4),
        objective={"name": "match"},
        optimizer={"scale_lr": 0.1, "schedule": "constant"},
        budget={"steps": 12},
    )
    result = finetune(recipe)
    assert result.comparison is not None
    gap = result.comparison.difference("converted", "source"), result.comparison.difference("recovered", "source")
    assert gap[0] is not None and gap[1] is not None
    assert abs(gap[1].difference.value) < abs(gap[0].difference.value)


@pytest.mark.parametrize("name", ["distill", "match"])
def test_full_is_taught_by_a_second_copy(
    make_recipe: MakeRecipe, converted: Converted, tmp_path: Path, name: str
) -> None:
    recipe = make_recipe(
        converted(form="paper", scale=1.5, spread=0.4),
        train={"what": "full"},
        objective={"name": name},
        optimizer={"lr": 1e-3},
    )
    events: list[dict[str, Any]] = []
    plan = finetune(recipe, dry_run=True).plan
    assert plan.teacher == "a second copy of the model"
    alone = finetune({**recipe, "objective": {"name": "next_token"}}, dry_run=True).plan
    assert alone.teacher is None and plan.memory.weights == 2 * alone.memory.weights
    finetune(recipe, on_progress=events.append)
    assert [event["second_copy"] for event in events if event["event"] == "teacher"] == [True]
    rows = _log(tmp_path / "out")
    assert rows[0]["teacher"] == "a second copy of the model"
    entry = json.loads((tmp_path / "out" / "surgery" / "history.json").read_text())["entries"][0]
    assert entry["teacher"] == "a second copy of the model"


def test_a_second_copy_teaches_what_the_first_would(make_recipe: MakeRecipe, converted: Converted) -> None:
    folder = converted(form="paper", scale=1.5, spread=0.4)
    model, other = (load_model(folder, RunOptions(device="cpu")) for _ in range(2))
    for module in other.modules():
        if hasattr(module, "log_reference"):
            module.enabled = False
    batch = collate(_rows())
    for name in ("distill", "match"):
        objective = read_recipe(make_recipe(objective={"name": name})).objective
        own = objective_sum(objective, model, batch).item()
        assert own > 0 and objective_sum(objective, model, batch, SecondCopy(other)).item() == pytest.approx(own)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.mul_(1.5)
    assert objective_sum(objective, model, batch, SecondCopy(other)).item() != pytest.approx(own, rel=1e-3)


def test_teaching_leaves_what_is_trained_as_it_is(make_recipe: MakeRecipe, converted: Converted) -> None:
    folder = converted()
    model = load_model(folder, RunOptions(device="cpu"))
    recipe = read_recipe(make_recipe(train={"what": "scale+lora", "rank": 2}))
    layout = Layout(model.config.to_dict())
    prepared = prepare_model(model, recipe, layout)
    chosen = choose_trained(prepared, read_recipe(make_recipe()), layout)
    with original(prepared):
        pass
    assert [name for name, parameter in prepared.named_parameters() if parameter.requires_grad] == chosen


def test_the_scale_learned_in_a_stage_stays_in_the_next(
    make_recipe: MakeRecipe, converted: Converted, tmp_path: Path
) -> None:
    """A stage that trains other layers keeps what an earlier one learned, through a checkpoint too."""
    recipe = make_recipe(
        budget={"steps": 2},
        checkpoints={"every": 1, "keep": 1},
        stages=[{"train": {"what": "scale", "layers": "0"}}, {"train": {"what": "scale", "layers": "1-2"}}],
    )

    crash(recipe, step=4)
    finetune(recipe, resume=True)
    finetune({**recipe, "output": str(tmp_path / "plain")})
    shard = load_file(tmp_path / "out" / "surgery-ssmax.safetensors")
    assert all(tensor.abs().min() > 0 for tensor in shard.values())
    other = load_file(tmp_path / "plain" / "surgery-ssmax.safetensors")
    assert all(torch.equal(shard[name], other[name]) for name in other)
