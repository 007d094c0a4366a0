"""Constants in the weights: the stock model gives the logits of the converted one, or the merge is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import surgery
from surgery.anatomy import FAMILIES, read_anatomy
from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.hub_upload import check_pushable
from surgery.commands.app import app
from surgery.errors import PlanRefusedError, UsageError
from surgery.loading import load_model
from surgery.recovery import merge
from tests.families import VOCABULARY, auto_class, families_for_the_matrix

OPERATIONS = "surgery-operations.safetensors"
MakeSource = Callable[..., Path]


def randomize(folder: Path) -> None:
    """Give every head another constant, from 0.4 to 2.5."""
    generator = torch.Generator().manual_seed(3)
    numbers = load_file(folder / OPERATIONS)
    drawn = {name: 0.4 + 2.1 * torch.rand(value.shape, generator=generator) for name, value in numbers.items()}
    save_file(drawn, folder / OPERATIONS, metadata={"format": "pt"})


def constants(source: Path, output: Path, form: str = "constant", outputs: str = "gain", **options: Any) -> Path:
    found = surgery.convert(source, "ssmax", form=form, outputs=outputs, output=output, **options).output
    randomize(found)
    return found


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.fixture(params=families_for_the_matrix())
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_family_is_merged_or_refused_with_the_reason(
    make_source: MakeSource, tmp_path: Path, family: str
) -> None:
    source = make_source(family)
    anatomy = read_anatomy(open_checkpoint(source))
    # These two normalise without a weight.
    normed = any(layer.query_norm == "head" for layer in anatomy.layers) or family in ("llama4_text", "nanochat")
    queries = not normed and FAMILIES[family].query_rows == "queries"
    # Something stands between the heads and the output projection of these two.
    outputs = family not in ("bitnet", "diffllama")
    forms = [("constant", "gain", queries and outputs)]
    if not (queries and outputs):
        forms += [("constant", "unchanged", queries), ("none", "gain", outputs)]
    for form, kind, possible in forms:
        converted = constants(source, tmp_path / f"{form}-{kind}", form, kind, layers="all")
        if possible:
            check_merged(source, converted, tmp_path / f"merged-{form}-{kind}", family)
        else:
            reasons = r"normalises the queries of each head|holds more than queries|reads the outputs of its heads"
            with pytest.raises(PlanRefusedError, match=reasons):
                merge(converted, output=tmp_path / "merged")
            assert not (tmp_path / "merged").exists()


def check_merged(source: Path, converted: Path, merged: Path, family: str) -> None:
    result = merge(converted, output=merged)
    assert result.changed_tensors > 0 and result.operation_tensors == 0
    stock = auto_class(family).from_pretrained(merged, trust_remote_code=False)
    assert not type(stock).__name__.startswith("Surgery")
    expected = logits(load_model(converted))
    assert (logits(stock) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (logits(load_model(source)) - expected).abs().max() > 1e-3 * expected.abs().max(), "the constants matter"


def test_some_heads_and_layers_and_nothing_else_changes(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source("qwen2", dtype=torch.bfloat16)
    converted = constants(source, tmp_path / "converted", layers="1", heads="0,2")
    merge(converted, output=tmp_path / "merged")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.1.self_attn.{name}" for name in ("q_proj.weight", "q_proj.bias", "o_proj.weight")}
    assert all(after[name].dtype == before[name].dtype for name in before)
    assert json.loads((tmp_path / "merged" / "config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )
    own = {path.name for path in (tmp_path / "merged").iterdir()} - {"surgery", "README.md"}
    assert own == {path.name for path in source.iterdir()} - {"README.md"}
    record = json.loads((tmp_path / "merged" / "surgery" / "merge.json").read_text())
    assert set(record["changed"]) == changed and record["operations"][0]["form"] == "constant"


def test_another_rope_stays_in_the_config(make_source: MakeSource, tmp_path: Path) -> None:
    operations = [{"name": "rope", "type": "yarn", "factor": 2}, {"name": "ssmax", "form": "constant"}]
    converted = surgery.convert(make_source("llama"), operations, output=tmp_path / "converted").output
    randomize(converted)
    merge(converted, output=tmp_path / "merged")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", trust_remote_code=False)
    expected = logits(load_model(converted))
    assert (logits(stock) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert "yarn" in (tmp_path / "merged" / "config.json").read_text()


def test_what_is_more_than_constants_is_refused(make_source: MakeSource, tmp_path: Path) -> None:
    anchored = surgery.convert(make_source("llama"), "ssmax", start={"scale": 0.1}, output=tmp_path / "anchored").output
    with pytest.raises(PlanRefusedError, match="anchored is more than a constant for each head"):
        merge(anchored, output=tmp_path / "merged")
    screened = surgery.convert(
        make_source("llama"), "screening", start={"threshold": 0.25, "softness": 0.5}, output=tmp_path / "screened"
    ).output
    with pytest.raises(PlanRefusedError, match="is more than a constant for each head"):
        merge(screened, output=tmp_path / "merged")
    with pytest.raises(UsageError, match="--base is for adapters"):
        merge(anchored, output=tmp_path / "merged", base=make_source("llama"))
    assert not (tmp_path / "merged").exists()


def test_the_command(make_source: MakeSource, tmp_path: Path) -> None:
    converted = constants(make_source("llama"), tmp_path / "converted")
    run = CliRunner().invoke(app, ["merge", str(converted), "-o", str(tmp_path / "merged")])
    assert run.exit_code == 0, run.output
    assert "logits differ from the unmerged model" in run.output
    assert run.output.endswith(f"Next: surgery inspect {tmp_path / 'merged'}\n"), "the source lies elsewhere"


def test_a_merged_folder_says_what_it_is(make_source: MakeSource, tmp_path: Path) -> None:
    """Its card is its own, an upload is allowed, `--force` replaces it, and verify says why it does nothing."""
    source = Path(shutil.copytree(make_source("llama"), tmp_path / "source"))
    (source / "README.md").write_text("---\nlicense: mit\n---\nThe same seed gives the same weights.\n")
    converted = constants(source, tmp_path / "converted")
    merged = merge(converted, output=tmp_path / "merged").output
    card = (merged / "README.md").read_text()
    assert "license: mit" in card and "same seed" not in card
    assert "changed 6 tensors; every other tensor is the source's byte for byte" in card and "- ssmax: " in card
    assert (merged / "surgery" / "source" / "README.md").read_bytes() == (source / "README.md").read_bytes()
    check_pushable(merged)
    merge(converted, output=merged, force=True)
    with pytest.raises(PlanRefusedError, match="no operation is left in it") as caught:
        surgery.verify(merged, against=source)
    assert "surgery evaluate" in str(caught.value.hint)
