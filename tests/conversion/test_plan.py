"""A plan is a value: the same each time, without times and paths, and the conversion follows it exactly."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from surgery.anatomy import REFUSED
from surgery.checkpoint import load_json, open_checkpoint, write_json
from surgery.conversion import PLAN_NAME, convert, make_plan
from surgery.conversion.options import parse_operation
from surgery.conversion.plan import NEW_SHARD, SHARD_PREFIX
from surgery.errors import CheckpointError, PlanRefusedError, SurgeryError, UsageError
from tests.anatomy.builders import bare_config, bare_source
from tests.checkpoint.builders import listing, reindex, sharded
from tests.conversion.conftest import FILES, MakeKind

ALL_OPTIONS = {"name": "ssmax", "form": "bias", "layers": "0,2", "heads": "1-2", "reference_length": 50}


def test_plans_of_one_source_are_equal_wherever_and_whenever(make_kind: MakeKind, tmp_path: Path) -> None:
    source = make_kind("adorned")
    moved = Path(shutil.copytree(source, tmp_path / "elsewhere" / source.name))
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    plans = [make_plan(folder, [ALL_OPTIONS]).plan for folder in (source, source, moved, f"{moved}/")]
    assert all(plan == plans[0] for plan in plans)
    assert len({json.dumps(plan.to_dict()) for plan in plans}) == 1
    assert plans[0].hash == plans[0].to_dict()["hash"]


def test_a_plan_holds_no_absolute_path(make_kind: MakeKind, tmp_path: Path) -> None:
    source = shutil.copytree(make_kind("adorned"), tmp_path / "named")
    text = json.dumps(make_plan(source, [ALL_OPTIONS]).plan.to_dict())
    assert "named" in text and tmp_path.name not in text


def test_the_hash_depends_on_every_option(make_kind: MakeKind) -> None:
    changed = [{}, {"form": "anchored"}, {"layers": "0"}, {"heads": "1"}, {"reference_length": 51}]
    changed += [{"start": {"scale": 0.5}}, {"start": {"bias": 0.5}}]
    hashes = {make_plan(make_kind("single"), [{**ALL_OPTIONS, **change}]).plan.hash for change in changed}
    assert len(hashes) == len(changed)


def test_a_plan_writes_nothing(make_kind: MakeKind, tmp_path: Path) -> None:
    source = Path(shutil.copytree(make_kind("adorned"), tmp_path / "source"))
    before = listing(tmp_path)
    make_plan(source, [ALL_OPTIONS])
    assert listing(tmp_path) == before


@pytest.mark.parametrize("kind", ["adorned", "bf16"])
@pytest.mark.parametrize("form", ["bias", "logn"])
def test_what_is_planned_is_what_is_done(make_kind: MakeKind, kind: str, form: str, tmp_path: Path) -> None:
    options = {**ALL_OPTIONS, "form": form}
    plan = make_plan(make_kind(kind), [options]).plan
    result = convert(make_kind(kind), [options], output=tmp_path / "out")
    assert result.plan == plan
    assert load_json(tmp_path / "out" / PLAN_NAME) == json.loads(json.dumps(plan.to_dict()))
    done = open_checkpoint(tmp_path / "out")
    assert done.config["surgery"]["plan_hash"] == plan.hash
    assert done.config["model_type"] == plan.model_type and done.config["architectures"] == [plan.architecture]

    source = open_checkpoint(make_kind(kind))
    shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
    assert {n: i.shape for n, i in done.tensors.items() if n not in source.tensors} == shapes
    assert set(done.shards) == {*plan.shards.values(), *([NEW_SHARD] if shapes else [])}
    assert plan.bytes["new_tensors"] == done.total_bytes - source.total_bytes
    assert plan.bytes["source_tensors"] == source.total_bytes
    record = {f"surgery/source/{name}" for name in ("config.json", "model.safetensors.index.json", "README.md")}
    own = {"README.md", PLAN_NAME, *plan.code}
    assert "modeling_surgery.py" in own
    assert set(done.other_files) - record == {*plan.kept_files, *own}
    assert set(FILES) <= set(plan.kept_files) or kind == "bf16"


def test_layers_heads_start_and_reference_land_in_config_and_tensors(make_kind: MakeKind, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    convert(make_kind("single"), **ALL_OPTIONS | {"start": {"scale": 0.25}}, to="ssmax", output=tmp_path / "out")
    (written,) = load_json(tmp_path / "out" / "config.json")["surgery"]["operations"]
    assert written == {
        "name": "ssmax",
        "form": "bias",
        "layers": [0, 2],
        "heads": [1, 2],
        "reference_length": 50,
        "start": {"scale": 0.25, "bias": 1.0},
    }
    tensors = load_file(tmp_path / "out" / NEW_SHARD)
    expected = {f"model.layers.{n}.self_attn.ssmax.{p}": v for n in (0, 2) for p, v in written["start"].items()}
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {n: [v, v] for n, v in expected.items()}
    assert all(tensor.dtype == "float32" for tensor in tensors.values())


def test_new_shard_names_are_none_that_save_pretrained_writes_or_deletes(make_kind: MakeKind) -> None:
    plan = make_plan(make_kind("sharded"), [ALL_OPTIONS]).plan
    for name in (*plan.shards.values(), NEW_SHARD):
        assert not name.startswith(("model", "pytorch_model", "adapter", "trainer", "optimizer")), name
    assert all(name == SHARD_PREFIX + shard for shard, name in plan.shards.items())


def test_skipped_layers_say_why(tmp_path: Path) -> None:
    source = bare_source(tmp_path / "model", "gemma2", sliding_window=16)
    plan = make_plan(source, [{"name": "ssmax", "layers": "1"}]).plan
    assert plan.skipped_layers == dict.fromkeys(("ssmax:0", "ssmax:2", "ssmax:3"), "not chosen")
    plan = make_plan(source, [{"name": "ssmax"}]).plan
    assert set(plan.skipped_layers) == {"ssmax:0", "ssmax:2"} and "16 keys" in plan.skipped_layers["ssmax:0"]
    plan = make_plan(source, [parse_operation({"name": "ssmax", "layers": [0]})]).plan
    assert plan.skipped_layers["ssmax:2"] == "not chosen", "0, which slides too, was taken"
    # Where it cannot be applied at all, numbers make no difference.
    scaled = bare_source(tmp_path / "scaled", "llama4_text", attention_chunk_size=512)
    plan = make_plan(scaled, [{"name": "ssmax", "layers": "0"}]).plan
    assert plan.skipped_layers["ssmax:1"] == "not chosen" and "scales the queries" in plan.skipped_layers["ssmax:3"]


# ------------------------------------------------------------------------------------------------ what is refused


def refused(source: Path, operations: list[Any] | None = None) -> SurgeryError:
    """The error of a plan, once it is certain that nothing was written."""
    before = listing(source.parent)
    with pytest.raises(SurgeryError) as caught:
        make_plan(source, [{"name": "ssmax"}] if operations is None else operations)
    assert listing(source.parent) == before
    return caught.value


@pytest.mark.parametrize("operations", [[], [{"name": "ssmax"}, {"name": "ssmax"}], [{"name": "softmin"}], [{}]])
def test_wrong_lists_of_operations(operations: list[Any], tmp_path: Path) -> None:
    assert isinstance(refused(bare_source(tmp_path / "model"), operations), UsageError)


def test_nothing_to_convert(tmp_path: Path) -> None:
    error = refused(bare_source(tmp_path / "model", "mistral", sliding_window=16))
    assert isinstance(error, PlanRefusedError) and error.exit_code == 3
    assert "nothing to convert" in error.message and "window of 16 keys" in error.message
    assert error.hint is not None and "--layers all" in error.hint


@pytest.mark.parametrize("model_type", ["lama", *sorted(REFUSED)])
def test_families_that_are_not_converted(model_type: str, tmp_path: Path) -> None:
    source = bare_source(tmp_path / "model")
    (source / "config.json").unlink()
    write_json(source / "config.json", bare_config("llama", model_type=model_type))
    error = refused(source)
    assert error.exit_code == 3
    assert REFUSED.get(model_type, "'llama'") in str(error)


def test_a_converted_checkpoint_is_not_converted_again(tmp_path: Path) -> None:
    out = convert(bare_source(tmp_path / "model"), output=tmp_path / "out").output
    error = refused(out)
    assert isinstance(error, PlanRefusedError) and "converted already (ssmax)" in error.message
    assert error.hint is not None and "surgery revert" in error.hint


@pytest.mark.parametrize(
    "architectures", [["LlamaModel"], ["LlamaForSequenceClassification"], [], "LlamaForCausalLM", 3]
)
def test_only_a_causal_language_model_is_converted(architectures: Any, tmp_path: Path) -> None:
    error = refused(bare_source(tmp_path / "model", architectures=architectures))
    assert "architectures" in error.message and error.exit_code in (2, 3)


@pytest.mark.parametrize("name", ["modeling_surgery.py", "surgery/plan.json", "surgery/x/y", "source-1.safetensors"])
def test_names_that_the_output_uses_itself(name: str, tmp_path: Path) -> None:
    source = bare_source(tmp_path / "model")
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_text("mine")
    assert "uses itself" in refused(source).message


def test_tensors_of_an_operation_that_config_does_not_know(make_kind: MakeKind, tmp_path: Path) -> None:
    """An unlocked, converted checkpoint that lost its block: converting it again would hide the first operation."""
    out = convert(make_kind("single"), output=tmp_path / "out").output
    shutil.copy(make_kind("single") / "config.json", out)
    shutil.rmtree(out / "surgery")
    for path in out.glob("*.py"):
        path.unlink()
    (out / NEW_SHARD).rename(out / "extra.safetensors")
    (out / "source-model.safetensors").rename(out / "model-1.safetensors")
    index = (out / "model.safetensors.index.json").read_text()
    index = index.replace(NEW_SHARD, "extra.safetensors").replace("source-model.", "model-1.")
    (out / "model.safetensors.index.json").write_text(index)
    assert "names of an operation" in refused(out).message


def _bin_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-10])


def _nan(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"hidden_size": 64', '"hidden_size": 64, "rope_theta": NaN'))


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _disagree(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"num_hidden_layers": 4', '"num_hidden_layers": 5'))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_bin_only, "safetensors"),
        (_truncate, "model.safetensors"),
        (_nan, "NaN"),
        (_no_config, "config.json"),
        (_disagree, "layers.4.self_attn.q_proj"),
    ],
)
def test_broken_sources(spoil: Any, said: str, tmp_path: Path) -> None:
    source = bare_source(tmp_path / "model")
    spoil(source)
    error = refused(source)
    assert isinstance(error, CheckpointError) and error.exit_code == 2
    assert said in str(error)


def test_an_index_that_points_outside(tmp_path: Path) -> None:
    source = reindex(sharded(tmp_path / "model"), a="../outside.safetensors")
    error = refused(source)
    assert error.exit_code == 2 and "outside.safetensors" in error.message


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        make_plan(tmp_path / "nowhere", [{"name": "ssmax"}])


# ----------------------------------------------------------------------------------------- strings from a stranger

HOSTILE = 'x\'"""\n```\n# Boo\n| a | b |\n<script>alert(1)</script>\n{{ 7 * 7 }}{% raw %}[l](js:1)\x1b[31m\u2028'


def test_hostile_strings_stay_strings(tmp_path: Path) -> None:
    """Into config.json as the JSON string that they were; into code and card not at all."""
    strings = {"_name_or_path": HOSTILE, "hidden_act": HOSTILE, HOSTILE: HOSTILE, "torch_dtype": HOSTILE}
    hostile = convert(bare_source(tmp_path / "a" / "model", **strings), output=tmp_path / "a" / "out").output
    plain = convert(bare_source(tmp_path / "b" / "model"), output=tmp_path / "b" / "out").output
    config, expected = load_json(hostile / "config.json"), load_json(plain / "config.json")
    for block in (config, expected):
        del block["surgery"]["plan_hash"]  # holds the size of the source's config.json
    assert {name: config[name] for name in strings} == strings
    assert {name: value for name, value in config.items() if name not in strings} == expected
    code = [path.name for path in plain.glob("*.py")]
    assert code == [path.name for path in hostile.glob("*.py")] and len(code) == 6
    assert all((hostile / name).read_bytes() == (plain / name).read_bytes() for name in code)
    assert (hostile / "README.md").read_bytes() == (plain / "README.md").read_bytes()


def test_a_hostile_name_is_inert_in_the_card(tmp_path: Path) -> None:
    name = "m'\"`<script>{{ 7 * 7 }}{% x %}[l](x)|\n# Boo\n---\n*b*"
    out = convert(bare_source(tmp_path / name), output=tmp_path / "out").output
    card = (out / "README.md").read_text()
    assert "{{ 7 \\* 7 }}" in card and "49" not in re.sub("[0-9a-f]{64}", "SHA-256", card)
    assert "<script>" not in card.replace("\\<script\\>", "")
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert [line for line in headings if line.startswith("## ")] == headings[1:] and len(headings) > 3
    assert not any(line.startswith("# Boo") for line in headings)
    assert card.splitlines().count("---") == 2


def test_front_matter_takes_over_plain_tags_only(make_kind: MakeKind, tmp_path: Path) -> None:
    from ruamel.yaml import YAML

    def front_matter(card: str, name: str) -> dict[str, Any]:
        source = bare_source(tmp_path / name)
        (source / "README.md").write_text(card)
        text = (convert(source, output=tmp_path / f"{name}-out").output / "README.md").read_text()
        return dict(YAML(typ="safe").load(text.split("---\n")[1]))

    plain = front_matter("no front matter", "plain")
    kept = front_matter((make_kind("adorned") / "README.md").read_text(), "kept")
    assert kept == {**plain, "license": "apache-2.0", "language": ["en", "de"]}
    for number, card in enumerate(
        (
            '---\nlicense: "mit\\n# Boo"\nlanguage: [en, {a: b}]\nbase_model: evil/x\n---\n',
            "---\nlicense: [unclosed\n---\n",
            "---\n- a list\n---\n",
            "---\nlicense: !!python/object/apply:os.system ['true']\n---\n",
            "---\nlicense: &a [*a]\n---\n",
            f"---\nlicense: mit\nx: {'[' * 100_000}\n---\n",
            f"---\nlicense: mit\nx:\n{'- ' * 10_000}\n---\n",
            f"---\nlicense: mit\nx: {'y' * 300_000}\n---\n",
        )
    ):
        assert front_matter(card, f"hostile-{number}") == plain, card


@pytest.mark.parametrize("auto_map", [{"AutoModelForCausalLM": "modeling_x.X", "AutoTokenizer": ["tok.T", None]}])
def test_a_source_with_code_of_its_own_is_converted_with_a_warning(auto_map: Any, tmp_path: Path) -> None:
    source = bare_source(tmp_path / "model", auto_map=auto_map)
    (source / "modeling_x.py").write_text("raise SystemExit\n")
    result = convert(source, output=tmp_path / "out")
    assert any("own modelling code is not used" in warning for warning in result.plan.warnings)
    written = load_json(tmp_path / "out" / "config.json")["auto_map"]
    assert written["AutoTokenizer"] == ["tok.T", None]
    assert written["AutoModelForCausalLM"] == "modeling_surgery.SurgeryLlamaForCausalLM"
    assert set(written) == {"AutoTokenizer", "AutoConfig", "AutoModel", "AutoModelForCausalLM"}


@pytest.mark.parametrize("auto_map", [None, [], "AutoModel", 3])
def test_an_auto_map_that_is_no_map(auto_map: Any, tmp_path: Path) -> None:
    source = bare_source(tmp_path / "model", auto_map=auto_map)
    if auto_map is None:
        assert make_plan(source, [{"name": "ssmax"}]).plan.warnings == ()
    else:
        assert "auto_map" in refused(source).message


def test_hidden_folders_are_left_out_and_named(tmp_path: Path) -> None:
    source = bare_source(tmp_path / "model")
    (source / ".cache\x1b[31m").mkdir()
    (source / ".cache\x1b[31m" / "x").write_text("x")
    (warning,) = make_plan(source, [{"name": "ssmax"}]).plan.warnings
    assert "hidden folders are left out: " in warning and ".cache" in warning and "\x1b" not in warning
