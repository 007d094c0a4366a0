"""Recipes on a screened checkpoint: thresholds, softness and windows are what ``scale`` trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.conversion import convert
from surgery.errors import PlanRefusedError, UsageError
from surgery.loading import load_model
from surgery.recovery import finetune
from tests.recovery.conftest import crash

NAMES = ("threshold", "softness", "log2_window")


@pytest.fixture(scope="module")
def screened(converted: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = converted().parent / "source"
    start = {"threshold": 0.0, "softness": 0.2, "log2_window": 4.0}
    return convert(source, "screening", start=start, output=tmp_path_factory.mktemp("screened") / "model").output


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in load_model(folder).named_parameters() if ".screening." in name}


@pytest.mark.parametrize("objective", ["next_token", "distill"])
def test_scale_trains_every_parameter_and_nothing_else(
    screened: Path, make_recipe: Any, tmp_path: Path, objective: str
) -> None:
    finetune(make_recipe(screened, train={"what": "scale"}, objective={"name": objective}))
    before, after = parameters(screened), parameters(tmp_path / "out")
    assert len(before) == 9 and sorted(before) == sorted(after)
    for name, value in after.items():
        assert torch.isfinite(value).all() and value.dtype == torch.float32
        assert not torch.equal(value, before[name]), name
    sources = [
        load_model(folder).get_parameter("model.layers.0.self_attn.q_proj.weight")
        for folder in (screened, tmp_path / "out")
    ]
    assert torch.equal(*sources)


def test_lora_alone_leaves_them_as_they_are(screened: Path, make_recipe: Any, tmp_path: Path) -> None:
    train = {"what": "lora", "rank": 2, "merge": True}
    result = finetune(make_recipe(screened, train=train, objective={"name": "distill"}))
    before, after = parameters(screened), parameters(tmp_path / "out")
    assert len(before) == 9 and all(torch.equal(before[name], after[name]) for name in before)
    weights = [
        load_model(folder).get_parameter("model.layers.0.self_attn.q_proj.weight")
        for folder in (screened, tmp_path / "out")
    ]
    assert not torch.equal(*weights) and result.held_out_loss_after != result.held_out_loss_before


def test_with_lora_the_saved_adapter_holds_them(screened: Path, make_recipe: Any, tmp_path: Path) -> None:
    softness = {"start": 0.2, "end": 0.07}
    finetune(make_recipe(screened, train={"what": "scale+lora", "rank": 2}, softness=softness))
    from safetensors import safe_open

    files = list((tmp_path / "out").rglob("adapter_model.safetensors"))
    assert files
    with safe_open(files[0], "pt") as adapter:
        names = list(adapter.keys())
        scheduled = [adapter.get_tensor(name) for name in names if name.endswith("softness")]
    for parameter in NAMES:
        assert sum(name.endswith(parameter) for name in names) == 3
    assert all(torch.equal(value, torch.full((4,), 0.07)) for value in scheduled)


def sparse(screened: Path, make_recipe: Any, **sections: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "train": {"what": "scale"},
        "budget": {"steps": 15},
        "checkpoints": {"every": 100},
        "optimizer": {"scale_lr": 0.06, "warmup": 0},
    }
    return dict(make_recipe(screened, **{**defaults, **sections}))


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "surgery" / "log.jsonl").read_text().splitlines()]


def test_a_target_is_reached_and_not_passed(screened: Path, make_recipe: Any, tmp_path: Path) -> None:
    result = finetune(sparse(screened, make_recipe, sparsity={"target": 0.8}, objective={"name": "distill"}))
    assert result.rejected_before is not None and result.rejected_after is not None
    assert result.rejected_before < 0.65 and 0.75 < result.rejected_after < 0.85
    rows = [row for row in log(tmp_path / "out") if "rejected" in row]
    assert len(rows) == 15
    for row in rows:
        assert row["sparsity"] == pytest.approx(max(0.0, 0.8 - row["rejected"]), abs=0.05)  # by documents' lengths
        assert row["loss"] < 0.5  # the price is not in it
    assert rows[0]["sparsity"] > 0.1 and abs(rows[-1]["rejected"] - 0.8) < 0.05


def test_memory_is_saved_by_windows_alone(screened: Path, make_recipe: Any, tmp_path: Path) -> None:
    """Windows of 16 keys and 4 first ones: 20 of 64 tokens stay; the target leaves 13."""
    sparsity = {"save": "memory", "context": 64, "target": 0.8, "weight": 5.0}
    quick = {"scale_lr": 0.15, "warmup": 0}
    finetune(sparse(screened, make_recipe, sparsity=sparsity, objective={"name": "distill"}, optimizer=quick))
    rows = [row for row in log(tmp_path / "out") if "saved" in row]
    assert len(rows) == 15 and rows[0]["saved"] == pytest.approx(1 - 20 / 64)
    assert rows[0]["sparsity"] == pytest.approx(5 * (0.8 - rows[0]["saved"]), rel=1e-3)
    assert 0.76 < rows[-1]["saved"] < 0.85 and rows[-1]["sparsity"] < rows[0]["sparsity"] / 2
    before, after = parameters(screened), parameters(tmp_path / "out")
    for name in before:
        assert torch.equal(before[name], after[name]) is not name.endswith("log2_window"), name


@pytest.mark.slow
def test_without_a_target_the_price_is_paid_always(screened: Path, make_recipe: Any, tmp_path: Path) -> None:
    result = finetune(sparse(screened, make_recipe, sparsity={"weight": 5.0}, budget={"steps": 12}))
    assert result.rejected_after is not None and result.rejected_after > (result.rejected_before or 0) + 0.1
    row = next(row for row in log(tmp_path / "out") if "rejected" in row)
    assert row["sparsity"] == pytest.approx(5 * (1 - row["rejected"]), rel=1e-3)


@pytest.mark.slow
def test_recomputed_activations_count_once(screened: Path, make_recipe: Any, tmp_path: Path) -> None:
    shares = []
    for name, again in (("kept", False), ("again", True)):
        recipe = sparse(
            screened, make_recipe, sparsity={"target": 0.9}, budget={"steps": 2}, output=str(tmp_path / name)
        )
        finetune({**recipe, "gradient_checkpointing": again})
        shares.append([(row["rejected"], row["loss"]) for row in log(tmp_path / name) if "rejected" in row])
    for kept, again in zip(*shares, strict=True):
        assert kept == pytest.approx(again)


@pytest.mark.slow
def test_an_open_start_learns_to_reject(converted: Any, make_recipe: Any, tmp_path: Path) -> None:
    opened = convert(converted().parent / "source", "screening", open=True, output=tmp_path / "open").output
    optimizer = {"scale_lr": 0.15, "warmup": 0}
    result = finetune(sparse(opened, make_recipe, sparsity={"target": 0.5}, optimizer=optimizer))
    assert result.rejected_before == 0.0 and result.rejected_after is not None and result.rejected_after > 0.3


def test_softness_goes_by_its_schedule_and_survives_a_stop(screened: Path, make_recipe: Any, tmp_path: Path) -> None:
    stages = [
        {"softness": {"start": 0.4, "end": 0.1, "schedule": "geometric"}, "budget": {"steps": 3}},
        {"softness": {"start": 0.1, "end": 0.0}, "budget": {"steps": 2}, "sparsity": {"target": 0.9}},
    ]
    recipe = sparse(screened, make_recipe, stages=stages, checkpoints={"every": 1})
    whole = {**recipe, "output": str(tmp_path / "whole")}
    finetune(whole)
    rows = [row for row in log(tmp_path / "whole") if "loss" in row]
    assert [row["softness"] for row in rows] == pytest.approx([0.4, 0.2, 0.1, 0.1, 0.0])
    assert all("softness" not in row["scale"] for row in rows)
    crash(recipe, step=2)
    finetune(recipe, resume=True)
    before, after = parameters(tmp_path / "whole"), parameters(tmp_path / "out")
    assert all(torch.equal(value, torch.zeros(4)) for name, value in after.items() if name.endswith("softness"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_cannot_be_asked_is_refused(screened: Path, converted: Any, make_recipe: Any) -> None:
    with pytest.raises(PlanRefusedError, match="sparsity applies to screening's thresholds; the model has ssmax"):
        finetune(make_recipe(converted(), sparsity={"target": 0.8}))
    with pytest.raises(UsageError, match=r"sparsity: give target, or weight, or both"):
        finetune(make_recipe(screened, sparsity={}))
    with pytest.raises(UsageError, match="did you mean `target`"):
        finetune(make_recipe(screened, sparsity={"taget": 0.8}))
    with pytest.raises(UsageError, match="save memory needs context"):
        finetune(make_recipe(screened, sparsity={"save": "memory", "target": 0.8}))
    with pytest.raises(UsageError, match="context has no effect on keys"):
        finetune(make_recipe(screened, sparsity={"context": 64, "target": 0.8}))
    by_memory = {"save": "memory", "context": 64, "target": 0.8}
    with pytest.raises(PlanRefusedError, match="trains windows alone"):
        finetune(make_recipe(screened, sparsity=by_memory, softness={"start": 0.1, "end": 0.1}))
    with pytest.raises(UsageError, match="geometric cannot start or end at 0"):
        finetune(make_recipe(screened, softness={"start": 0.1, "end": 0, "schedule": "geometric"}))


def test_a_plan_says_what_is_asked_of_screening(screened: Path, make_recipe: Any) -> None:
    softness = {"start": 0.1, "end": 0.02}
    plan = finetune(make_recipe(screened, sparsity={"target": 0.8}, softness=softness), dry_run=True).plan
    assert (
        plan.section_summaries["screening"]
        == "80% of the keys rejected, at a price of 1 nats, softness from 0.1 to 0.02"
    )


# ---------------------------------------------------------------------------------------------------------- units


@pytest.fixture(scope="module")
def bridge(converted: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At the end of the bridge where it is as ``screened``."""
    start = {"threshold": 0.0, "softness": 0.2, "log2_window": 4.0}
    given = {"form": "unit", "renormalisation": 1.0, "start": start}
    source = converted().parent / "source"
    return convert(source, "screening", **given, output=tmp_path_factory.mktemp("bridge") / "model").output


def across(bridge: Path, make_recipe: Any, **sections: Any) -> dict[str, Any]:
    stages = [
        {"bridge": {"start": 1, "end": 0.5}, "budget": {"steps": 3}},
        {"bridge": {"start": 0.5}, "budget": {"steps": 3}, "objective": {"name": "distill"}},
    ]
    return sparse(bridge, make_recipe, stages=stages, evaluation={"sequences": 1}, **sections)


@pytest.mark.slow
def test_a_run_starts_at_gated_and_ends_at_the_unit(
    screened: Path, bridge: Path, make_recipe: Any, tmp_path: Path
) -> None:
    """The first step equals gated, p follows the schedule, and the saved value is the end of the schedule."""
    finetune(across(bridge, make_recipe))
    rows = [row for row in log(tmp_path / "out") if "loss" in row]
    assert [row["bridge"] for row in rows] == pytest.approx([1.0, 0.75, 0.5, 0.5, 0.25, 0.0])
    assert "renormalisation" not in rows[0]["scale"] and "log2_gain" in rows[1]["scale"]
    gated = sparse(screened, make_recipe, budget={"steps": 1}, output=str(tmp_path / "gated"))
    finetune({**gated, "evaluation": {"sequences": 1}})
    assert rows[0]["loss"] == next(row for row in log(tmp_path / "gated") if "loss" in row)["loss"]
    before, after = parameters(bridge), parameters(tmp_path / "out")
    ends = [value for name, value in after.items() if name.endswith("renormalisation")]
    assert len(ends) == 3 and not torch.stack(ends).any()
    assert all(not torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.slow
def test_the_way_over_the_bridge_survives_a_stop(bridge: Path, make_recipe: Any, tmp_path: Path) -> None:
    recipe = across(bridge, make_recipe, checkpoints={"every": 1})
    finetune({**recipe, "output": str(tmp_path / "whole")})
    crash(recipe, step=5)
    finetune(recipe, resume=True)
    after, whole = parameters(tmp_path / "out"), parameters(tmp_path / "whole")
    assert after.keys() == whole.keys() and all(torch.equal(value, whole[name]) for name, value in after.items())


@pytest.mark.slow
def test_with_lora_the_exponent_is_set_and_not_learned(bridge: Path, make_recipe: Any, tmp_path: Path) -> None:
    train = {"what": "scale+lora", "rank": 2, "merge": True}
    finetune(sparse(bridge, make_recipe, train=train, bridge={"end": 0.25}, budget={"steps": 3}))
    for name, value in parameters(tmp_path / "out").items():
        if name.endswith("renormalisation"):
            assert torch.equal(value, torch.full((4,), 0.25))


def test_a_bridge_needs_a_form_that_it_leads_to(screened: Path, bridge: Path, make_recipe: Any) -> None:
    with pytest.raises(
        PlanRefusedError, match="bridge leads to screening units; the model has screening of form gated"
    ):
        finetune(make_recipe(screened, bridge={}))
    plan = finetune(make_recipe(bridge, bridge={}), dry_run=True).plan
    assert plan.section_summaries["screening"] == "renormalisation from 1 to 0"


def test_softness_does_nothing_in_a_unit(converted: Any, make_recipe: Any, tmp_path: Path) -> None:
    source, start = converted().parent / "source", {"threshold": 0.0}
    unit = convert(source, "screening", form="unit", start=start, output=tmp_path / "unit").output
    with pytest.raises(PlanRefusedError, match="softness has no effect in a screening unit"):
        finetune(make_recipe(unit, softness={"start": 0.1, "end": 0.02}))


@pytest.mark.parametrize("section", [{"softness": {"start": 0.2, "end": 0.9}}, {"sparsity": {"target": 0.8}}])
def test_an_adapter_alone_takes_no_section_of_the_operation(
    screened: Path, make_recipe: Any, section: dict[str, Any]
) -> None:
    """A schedule would train at another softness than the one that is written, and a price would be paid by nobody."""
    recipe = sparse(screened, make_recipe, train={"what": "lora", "rank": 2}, optimizer={"lr": 1e-3}, **section)
    with pytest.raises(PlanRefusedError, match=r"numbers of screening, and train\.what lora leaves them as they are"):
        finetune(recipe, device="cpu", dry_run=True)
