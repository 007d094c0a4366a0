"""Sources that lack a tensor are refused before any work; sources with one too many load as they did before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from surgery.anatomy import FAMILIES
from surgery.conversion import convert, make_plan
from surgery.errors import CheckpointError
from surgery.verification import verify
from tests.anatomy.builders import bare_source
from tests.conversion.conftest import MakeKind

Tensors = dict[str, torch.Tensor]
STRAYS: Mapping[str, Any] = {
    "another head": lambda t: {"score.weight": torch.zeros(2, 32)},
    "a bias": lambda t: {"model.layers.1.self_attn.q_proj.bias": torch.ones(32)},
    "a layer": lambda t: {n.replace("layers.2.", "layers.3."): v.clone() for n, v in t.items() if "layers.2." in n},
    "frequencies": lambda t: {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)},
}


@pytest.fixture
def respelled(make_kind: MakeKind, tmp_path: Path) -> Callable[[Callable[[Tensors], Any]], Path]:
    """``respelled(change)``: a tiny untied llama with its dictionary of tensors changed."""

    def make(change: Callable[[Tensors], Any]) -> Path:
        folder = Path(shutil.copytree(make_kind("single"), tmp_path / "source"))
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lm_head.weight", "does not tie the output projection"),
        ("model.layers.1.mlp.up_proj.weight", r"no model\.layers\.1\.mlp\.up_proj\.weight"),
        ("model.layers.2.input_layernorm.weight", r"no model\.layers\.2\.input_layernorm\.weight"),
    ],
)
def test_a_missing_tensor_is_refused_before_any_work(respelled: Any, tmp_path: Path, name: str, said: str) -> None:
    source = respelled(lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=said):
        convert(source, output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_tied_head_is_not_missing(tmp_path: Path, make_source: Any) -> None:
    tied = make_source("llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    make_plan(tied, [{"name": "ssmax"}])


@pytest.mark.parametrize("family", ["biogpt", "gpt_neox", "llama"])
def test_the_head_by_the_name_of_the_family(family: str, tmp_path: Path) -> None:
    source = bare_source(tmp_path / "model", family, tie_word_embeddings=False)
    make_plan(source, [{"name": "ssmax"}])
    tensors = load_file(source / "model.safetensors")
    tensors.pop(f"{FAMILIES[family].head}.weight")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=FAMILIES[family].head):
        make_plan(source, [{"name": "ssmax"}])


@pytest.mark.parametrize("stray", sorted(STRAYS))
def test_a_tensor_that_transformers_ignores_does_not_keep_the_model_from_loading(
    respelled: Any, tmp_path: Path, stray: str
) -> None:
    source = respelled(lambda tensors: tensors.update(STRAYS[stray](tensors)))
    out = convert(source, output=tmp_path / "out").output
    plain, operated = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (source, out))
    tokens = torch.randint(0, 96, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(operated(tokens).logits, plain(tokens).logits)
    assert not verify(out, against=source, files_only=True).failed
    operated.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, plain(tokens).logits)


def test_a_tensor_of_an_operation_that_is_left_over_is_an_error(make_kind: MakeKind, tmp_path: Path) -> None:
    """The block in config.json lost a layer: its scales would be dropped with a printed line."""

    out = convert(make_kind("single"), output=tmp_path / "out").output
    config = json.loads((out / "config.json").read_text())
    config["surgery"]["operations"][0]["layers"] = [0, 1]
    (out / "config.json").write_text(json.dumps(config))
    for auto in (AutoModelForCausalLM, AutoModel):
        with pytest.raises(ValueError, match=r"unexpected: model\.layers\.2\.self_attn\.ssmax\.scale|layers\.2"):
            auto.from_pretrained(out)
