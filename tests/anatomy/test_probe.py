"""The probe: it finds every row of the table again, finds families that are not in the table, and refuses others."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from typer.testing import CliRunner

from surgery.anatomy import FAMILIES, Family, read_anatomy
from surgery.anatomy.families import probed_family
from surgery.anatomy.probe import probe
from surgery.checkpoint import open_checkpoint
from surgery.commands.app import app
from surgery.conversion import convert, make_plan, revert
from surgery.errors import CheckpointError, PlanRefusedError
from surgery.operations.inspection import inspect
from surgery.verification import verify
from surgery.zoo.run import run_zoo
from surgery.zoo.zoo import open_zoo
from tests.conversion.conftest import tree
from tests.families import _COMMON, _MOE, families_for_the_matrix
from tests.zoo.conftest import write_manifest

FOUND = (
    "architecture", "config_class", "base_model", "base_prefix", "counted_at", "attention", "query", "query_rows",
    "query_axis", "hybrid", "sdpa",
)  # fmt: skip


@pytest.mark.parametrize("model_type", families_for_the_matrix())
def test_it_finds_what_the_table_says(make_source: Any, model_type: str) -> None:
    checkpoint = open_checkpoint(make_source(model_type))
    if FAMILIES[model_type].text is not None:
        with pytest.raises(
            PlanRefusedError, match=r"no causal language model|a part of a larger model|with the classes of"
        ):
            probe(checkpoint)
        return
    if FAMILIES[model_type].scales is not None:
        with pytest.raises(PlanRefusedError, match="queries by the position"):
            probe(checkpoint)
        return
    row, found = FAMILIES[model_type], probe(checkpoint)
    assert {name: getattr(found, name) for name in FOUND} == {name: getattr(row, name) for name in FOUND}
    anatomy, expected = read_anatomy(checkpoint, family=found), read_anatomy(checkpoint)
    assert anatomy.layers == expected.layers and anatomy.positions == expected.positions


def tiny(folder: Path, model_type: str, *, weights: bool = True, **changes: Any) -> Path:
    """A tiny random model of a type that is not in the table; or its config alone."""
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    config = AutoConfig.for_model(model_type, **{**_COMMON, **changes})
    if weights:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().save_pretrained(folder)
    else:
        config.save_pretrained(folder)
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, "model_type": model_type}))
    return folder


_MORE: dict[str, dict[str, Any]] = {
    "beam": {"head_dim": 8}, "flint": {**_MOE}, "hy_v3": {"head_dim": 8, **_MOE}, "kolibri1": {"head_dim": 8, **_MOE},
}  # fmt: skip


@pytest.fixture(scope="module")
def laguna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert "laguna" not in FAMILIES
    return tiny(tmp_path_factory.mktemp("unknown") / "tiny-laguna", "laguna", head_dim=8, **_MOE)


def test_without_the_flag_it_is_refused_with_what_the_tensors_say(laguna: Path) -> None:
    with pytest.raises(PlanRefusedError, match=r"'laguna' is not supported; its tensors have q_proj in 3 layers") as no:
        make_plan(laguna, [{"name": "ssmax"}])
    assert "--allow-unverified" in str(no.value.hint)


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["here", "fresh"])
def test_an_unknown_family_is_converted_verified_and_reverted(laguna: Path, tmp_path: Path, fresh: bool) -> None:
    result = convert(laguna, layers="all", output=tmp_path / "out", allow_unverified=True)
    assert any("unverified family: 'laguna'" in warning for warning in result.plan.warnings)
    assert "unverified family: 'laguna'" in (result.output / "README.md").read_text()
    verified = verify(result.output, against=laguna, record=False)
    assert verified.failed == ()
    passed = {check.name for check in verified.checks if check.status == "passed"}
    assert {"n: multipliers", "n: packed", "operation off = source"} <= passed
    assert ("same logits without surgery" in passed) == fresh
    assert read_anatomy(open_checkpoint(result.output)).family.attention == "layers.{layer}.self_attn"
    revert(result.output, output=tmp_path / "back")
    assert tree(tmp_path / "back") == tree(laguna)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["beam", "flint", "hy_v3", "kolibri1"])
def test_more_unknown_families(tmp_path: Path, model_type: str) -> None:
    source = tiny(tmp_path / model_type, model_type, **_MORE[model_type])
    out = convert(source, layers="all", output=tmp_path / "out", allow_unverified=True).output
    assert verify(out, against=source, record=False).failed == ()


def test_a_model_that_keeps_its_state_elsewhere_fails_the_verification(tmp_path: Path) -> None:
    source = tiny(tmp_path / "source", "recurrent_gemma", lru_width=32, head_dim=8, attention_window_size=16)
    out = convert(source, layers="all", output=tmp_path / "out", allow_unverified=True).output
    failed = {check.name: check.detail for check in verify(out, against=source, record=False).failed}
    name = "n: left-padded with a cache"
    assert "no attribute 'cache'" in failed[name] or "no attribute 'past_key_values'" in failed[name]


def test_the_flag_changes_nothing_for_a_known_family(make_source: Any) -> None:
    plans = [make_plan(make_source("llama"), [{"name": "ssmax"}], allow_unverified=flag).plan for flag in (True, False)]
    assert plans[0] == plans[1]


def test_it_is_inspected_where_that_is_allowed(laguna: Path) -> None:
    with pytest.raises(PlanRefusedError, match="'laguna' is not supported"):
        inspect(laguna)
    inspection = inspect(laguna, allow_unverified=True)
    assert inspection.anatomy.family.unverified
    assert all(reason is None for reason in inspection.reasons["ssmax"])
    assert all("unverified family" in str(reason) for reason in inspection.reasons["rope"])
    printed = CliRunner().invoke(app, ["inspect", str(laguna), "--allow-unverified"]).stdout
    assert "laguna (unverified)" in printed and f"--to ssmax {laguna} --allow-unverified" in printed


def test_a_zoo_takes_it_where_that_is_allowed(laguna: Path, tmp_path: Path) -> None:
    """For all, or for one entry; known families are as they were."""
    models = [{"path": str(laguna)}, {"path": str(laguna), "name": "no", "allow_unverified": False}]
    zoo = open_zoo(write_manifest(tmp_path, models=models, allow_unverified=True, verify="none"))
    assert [(row.state, row.family) for row in zoo.plan().rows] == [("ready", "laguna"), ("refused", "")]
    assert {item["item"]: item["state"] for item in run_zoo(zoo)["items"]} == {
        f"{laguna.name}-ssmax": "done",
        "no-ssmax": "refused",
    }


def test_what_an_unverified_family_does_not_get(laguna: Path) -> None:
    with pytest.raises(PlanRefusedError, match="positions of an unverified family"):
        make_plan(laguna, [{"name": "rope"}], allow_unverified=True)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("mamba", "no module uses the attention backends"),
        ("deepseek_v3", "latent attention"),
        ("bart", "encoder-decoder"),
        ("bert", "not causal"),
        ("llama4_text", "queries by the position"),
        ("jetmoe", "no query projection of a known name"),
        ("internlm3", "with the classes of 'llama'"),
        ("gemma4_text", "may vary across layers"),
        ("hrm_text", "several kinds of attention|different query projections"),
        ("martian", "no causal language model of this type"),
    ],
)
def test_what_is_refused_even_so(tmp_path: Path, model_type: str, message: str) -> None:
    """By the probe itself; most of these stand in the table of refused ones as well."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if model_type not in (*CONFIG_MAPPING_NAMES, "martian"):
        pytest.skip(f"the installed transformers has no {model_type}")
    if model_type == "martian":
        (tmp_path / "config.json").write_text('{"model_type": "martian"}')
    else:
        tiny(tmp_path, model_type, weights=False)

    class Checkpoint:
        folder = tmp_path
        config = json.loads((tmp_path / "config.json").read_text())
        tensors = MappingProxyType({})

    with pytest.raises(PlanRefusedError, match=message):
        probe(Checkpoint())  # type: ignore[arg-type]


def test_a_table_that_refuses_is_not_overruled(tmp_path: Path) -> None:
    source = tiny(tmp_path / "source", "mamba")
    with pytest.raises(PlanRefusedError, match="'mamba' is refused: a state-space"):
        make_plan(source, [{"name": "ssmax"}], allow_unverified=True)


ROW = {"name": "x", "architecture": "XForCausalLM", "unverified": True}


def test_a_row_travels_as_json() -> None:
    row = Family(model_type="x", keys={"hidden_size": "n_embd"}, defaults={"layer_types": ["a"]}, **ROW).for_runtime
    assert probed_family("x", json.loads(json.dumps(row["family"]))).for_runtime == row


@pytest.mark.parametrize(
    "row",
    [
        None, [], {**ROW, "unverified": False}, {**ROW, "more": 1}, {**ROW, "query": "a b"}, {**ROW, "query": 3},
        {**ROW, "attention": "layers/{layer}"}, {**ROW, "attention": "{layer}.{layer}"}, {**ROW, "query_axis": 2},
        {**ROW, "architecture": "os.system"}, {**ROW, "defaults": 1}, {**ROW, "keys": {"hidden_size": "../x"}},
    ],
)  # fmt: skip
def test_a_row_from_a_file_is_checked(row: Any) -> None:
    with pytest.raises(CheckpointError, match=r"surgery\.family"):
        probed_family("x", row)
