"""The RoPE change: the written config from each spelling of the source, and the refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from surgery.anatomy import read_anatomy
from surgery.checkpoint import load_json, open_checkpoint
from surgery.conversion import convert, make_plan
from surgery.errors import PlanRefusedError, SurgeryError, UsageError
from surgery.operations import OPERATIONS
from surgery.operations.inspection import inspect
from tests.anatomy.builders import LAYERS, bare_source

LENGTH = 8192
YARN = {
    "rope_type": "yarn",
    "factor": 2.0,
    "original_max_position_embeddings": LENGTH,
    "attention_factor": 0.1 * math.log(2) + 1,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}


def changed(source: Path, **options: Any) -> dict[str, Any]:
    """What a plan changes in config.json."""
    return dict(make_plan(source, [{"name": "rope", **options}]).plan.config)


@pytest.mark.parametrize(
    ("keys", "theta", "removed"),
    [
        ({}, 10_000.0, ()),
        ({"rope_theta": 5e5}, 5e5, ("rope_theta",)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, ()),
        ({"rope_theta": 7.0, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, ("rope_theta",)),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "default"}}, 5e5, ("rope_theta", "rope_scaling")),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, ("rope_theta", "rope_scaling")),
        ({"original_max_position_embeddings": 5}, 1e4, ("original_max_position_embeddings",)),
    ],
)
def test_every_spelling_of_the_source_comes_out_as_one(
    tmp_path: Path, keys: dict[str, Any], theta: float, removed: tuple[str, ...]
) -> None:
    found = changed(bare_source(tmp_path / "model", **keys))
    assert found == {
        "max_position_embeddings": 2 * LENGTH,
        "rope_parameters": {**YARN, "rope_theta": theta},
        **dict.fromkeys(removed),
    }


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"type": "linear"}, {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
        ({"type": "theta", "theta": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
        ({"type": "theta", "theta_factor": 50}, {"rope_type": "default", "rope_theta": 5e5}),
        ({"type": "ntk", "factor": 4}, {"rope_type": "default", "rope_theta": 1e4 * 4 ** (64 / 62)}),
        (
            {"factor": 4, "attention_factor": 1.5, "beta_fast": 16, "beta_slow": 2},
            {**YARN, "rope_theta": 1e4, "factor": 4.0, "attention_factor": 1.5, "beta_fast": 16.0, "beta_slow": 2.0},
        ),
    ],
)
def test_types(tmp_path: Path, options: dict[str, Any], parameters: dict[str, Any]) -> None:
    found = changed(bare_source(tmp_path / "model", head_dim=64), **options)
    assert found["rope_parameters"] == parameters
    assert found["max_position_embeddings"] == LENGTH * options.get("factor", 2)


def test_a_rotated_part_of_the_head_stays_a_part(tmp_path: Path) -> None:
    """GPT-NeoX rotates a quarter where config.json is silent, and calls it rotary_pct where it is not."""
    silent = changed(bare_source(tmp_path / "a", "gpt_neox", hidden_size=2048), type="ntk")
    assert silent["rope_parameters"] == {
        "rope_type": "default",
        "rope_theta": 1e4 * 2 ** (16 / 14),
        "partial_rotary_factor": 0.25,
    }
    half = changed(bare_source(tmp_path / "b", "gpt_neox", rotary_pct=0.5, rotary_emb_base=20, hidden_size=2048))
    assert half["rope_parameters"]["partial_rotary_factor"] == 0.5 and half["rope_parameters"]["rope_theta"] == 20
    assert half["rotary_pct"] is None and half["rotary_emb_base"] is None


GEMMA: dict[str, Any] = {"head_dim": 64, "sliding_window": 16, "sliding_window_pattern": 2, "rope_local_base_freq": 1e3}


@pytest.mark.parametrize(
    ("layers", "expected", "changes"),
    [
        ("full", (1, 3), {"full_attention"}),
        ("sliding", (0, 2), {"sliding_attention"}),
        ("all", (0, 1, 2, 3), {"full_attention", "sliding_attention"}),
        ("1,3", (1, 3), {"full_attention"}),
    ],
)
def test_a_rope_for_each_kind_of_layer(
    tmp_path: Path, layers: str, expected: tuple[int, ...], changes: set[str]
) -> None:
    source = bare_source(tmp_path / "model", "gemma3_text", **GEMMA)
    plan = make_plan(source, [{"name": "rope", "type": "linear", "layers": layers}]).plan
    assert tuple(plan.operations[0]["layers"]) == expected
    parameters = plan.config["rope_parameters"]
    assert {label for label, own in parameters.items() if own["rope_type"] == "linear"} == changes
    assert parameters["full_attention"]["rope_theta"] == 1e6 and parameters["sliding_attention"]["rope_theta"] == 1e3
    assert plan.config["rope_local_base_freq"] is None


REFUSALS: list[tuple[dict[str, Any], dict[str, Any], type[SurgeryError], str]] = [
    ({}, {"factor": 1}, UsageError, "factor 1"),
    ({}, {"factor": 1.00001}, PlanRefusedError, "not a whole number"),
    ({}, {"type": "theta"}, UsageError, "exactly one of theta and theta_factor"),
    ({}, {"type": "theta", "theta": 1e5, "theta_factor": 2}, UsageError, "exactly one"),
    ({}, {"theta": 1e5}, UsageError, "theta has no effect with type 'yarn'"),
    ({}, {"type": "ntk", "beta_fast": 3}, UsageError, "beta_fast has no effect with type 'ntk'"),
    ({}, {"beta_fast": 1, "beta_slow": 2}, UsageError, "beta_fast must be greater"),
    ({}, {"type": "dynamic"}, UsageError, "type 'dynamic'"),
    ({}, {"heads": [0]}, UsageError, "heads: unknown option"),
    ({}, {"layers": "0-1"}, PlanRefusedError, "all layers share one RoPE"),
    ({}, {"layers": "sliding"}, PlanRefusedError, "since all layers share one RoPE"),
    ({}, {"replace": True}, UsageError, "has no RoPE scaling"),
    ({}, {"original_length": 4}, UsageError, "has no effect without replace"),
    ({}, {"before": {}}, UsageError, "the plan sets before"),
    ({"head_dim": 2}, {"type": "ntk"}, PlanRefusedError, "more than one pair"),
    ({"rope_scaling": LLAMA3}, {}, PlanRefusedError, r"already scales its positions \(llama3\)"),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, {"replace": True}, PlanRefusedError, "have the text length"),
    ({"rope_parameters": {"rope_theta": "x"}}, {}, SurgeryError, "rope_theta must be a positive number"),
    ({"rope_scaling": [1]}, {}, SurgeryError, "rope_scaling must be an object"),
]


@pytest.mark.parametrize(("keys", "options", "kind", "said"), REFUSALS)
def test_refusals(
    tmp_path: Path, keys: dict[str, Any], options: dict[str, Any], kind: type[SurgeryError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        changed(bare_source(tmp_path / "model", **keys), **options)


def test_what_a_family_cannot_run_or_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from surgery.anatomy import anatomy as reader

    phi = bare_source(tmp_path / "phi", "phi3", head_dim=64)
    with pytest.raises(PlanRefusedError, match="'phi3' does not support RoPE of type 'yarn'") as caught:
        changed(phi)
    assert caught.value.hint == "Use --type ntk or --type theta."
    assert changed(phi, type="ntk")["rope_parameters"]["rope_type"] == "default"
    mistral = bare_source(tmp_path / "mistral", "mistral", sliding_window=16)
    with pytest.raises(PlanRefusedError, match="every layer slides, with a window of 16 keys"):
        changed(mistral)
    assert changed(mistral, layers="all")["max_position_embeddings"] == 2 * LENGTH
    monkeypatch.setattr(reader, "read_ropes", lambda *_: ())
    with pytest.raises(PlanRefusedError, match="no rotary positions to change"):
        changed(bare_source(tmp_path / "none"))
    assert set(inspect(tmp_path / "none").reasons["rope"]) == {"the family has no rotary positions"}


@pytest.mark.parametrize(("options", "length"), [({}, 1024), ({"original_length": 4096}, 4096)])
def test_a_scaling_is_replaced_when_asked(tmp_path: Path, options: dict[str, Any], length: int) -> None:
    source = bare_source(tmp_path / "model", rope_theta=5e5, rope_scaling=LLAMA3)
    assert set(inspect(source).reasons["rope"]) == {"already scaled (llama3)"}
    plan = make_plan(source, [{"name": "rope", "factor": 4, "replace": True, **options}]).plan
    parameters = plan.config["rope_parameters"]
    assert parameters == {
        **YARN,
        "rope_theta": 5e5,
        "factor": 4.0,
        "original_max_position_embeddings": length,
        "attention_factor": 0.1 * math.log(4) + 1,
    }
    assert plan.config["max_position_embeddings"] == 4 * length and plan.config["rope_scaling"] is None
    assert any("(llama3), which is replaced" in warning for warning in plan.warnings)
    assert any("the source has 8192 positions" in warning for warning in plan.warnings) == (4 * length < LENGTH)


def test_shared_rope_reaches_the_sliding_layers_and_says_so(tmp_path: Path) -> None:
    source = bare_source(tmp_path / "model", "gemma2", sliding_window=16)
    plan = make_plan(source, [{"name": "rope"}]).plan
    assert plan.operations[0]["layers"] == list(range(LAYERS))
    assert any("2 sliding layers share this RoPE" in warning for warning in plan.warnings)


def test_resolved_options_are_read_back_as_they_are(tmp_path: Path) -> None:
    source = bare_source(tmp_path / "model", rope_scaling=LLAMA3)
    written = make_plan(source, [{"name": "rope", "replace": True}]).plan.operations[0]
    options = OPERATIONS["rope"].options
    assert options.model_validate(dict(written)).resolved() == dict(written)


def test_a_rope_only_plan_keeps_the_type_and_brings_no_code(tmp_path: Path) -> None:
    auto_map = {"AutoModelForCausalLM": "modeling_x.X"}
    source = bare_source(tmp_path / "model", architectures=["LlamaForCausalLM"], auto_map=auto_map)
    out = convert(source, "rope", output=tmp_path / "out").output
    config, before = load_json(out / "config.json"), load_json(source / "config.json")
    assert not (out / "modeling_surgery.py").exists()
    block = config.pop("surgery")
    assert "locks" not in block and [options["name"] for options in block["operations"]] == ["rope"]
    assert config == {**before, "max_position_embeddings": 2 * LENGTH, "rope_parameters": config["rope_parameters"]}
    card = (out / "README.md").read_text()
    assert (
        "trust_remote_code=True" not in card and "no tensor is new" in card and "tags:\n- model-surgery\n- rope" in card
    )


def test_both_orders_give_the_same_model_and_n_is_the_sources(tmp_path: Path) -> None:
    source = bare_source(tmp_path / "model")
    first = convert(source, [{"name": "rope"}, {"name": "ssmax"}], output=tmp_path / "first").output
    second = convert(source, [{"name": "ssmax"}, {"name": "rope"}], output=tmp_path / "second").output
    configs = [load_json(out / "config.json") for out in (first, second)]
    blocks = [config.pop("surgery") for config in configs]
    assert configs[0] == configs[1]
    assert blocks[0]["operations"] == blocks[1]["operations"][::-1]
    assert all(options.get("reference_length", LENGTH) == LENGTH for options in blocks[0]["operations"])


def test_ssmax_after_rope_counts_from_the_sources_length_and_reverts_to_it(tmp_path: Path) -> None:
    from tests.conversion.conftest import tree

    source = bare_source(tmp_path / "model")
    longer = convert(source, "rope", output=tmp_path / "longer").output
    anatomy = read_anatomy(open_checkpoint(longer))
    assert (anatomy.trained_length, anatomy.positions) == (LENGTH, 2 * LENGTH)
    both = convert(longer, "ssmax", output=tmp_path / "both").output
    config = load_json(both / "config.json")
    assert config["surgery"]["operations"][0]["reference_length"] == LENGTH
    assert [done["name"] for done in config["surgery"]["base"]["operations"]] == ["rope"]
    assert read_anatomy(open_checkpoint(both)).trained_length == LENGTH
    from surgery.conversion import revert

    assert tree(revert(both, output=tmp_path / "back").output) == tree(longer)
    assert tree(revert(longer, output=tmp_path / "again").output) == tree(source)
    for folder, name, said in ((longer, "rope", "already has rope"), (both, "rope", "converted")):
        with pytest.raises(PlanRefusedError, match=said):
            make_plan(folder, [{"name": name}])
