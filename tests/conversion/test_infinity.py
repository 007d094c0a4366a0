"""Published hybrids write Infinity into config.json, and transformers reads it: so do all commands."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import surgery
from surgery.conversion import convert, revert
from surgery.errors import SurgeryError
from surgery.loading import RunOptions, load_model
from tests.families import VOCABULARY

HYBRIDS = ("bamba", "falcon_h1", "granitemoehybrid", "nemotron_h")


@pytest.fixture(params=HYBRIDS)
def source(request: Any, make_source: Any, tmp_path: Path) -> Path:
    """A tiny hybrid whose config.json spells Infinity as older versions of transformers did."""
    folder = tmp_path / "source"
    shutil.copytree(make_source(request.param), folder)
    path = folder / "config.json"
    text = path.read_text()
    assert text.rstrip().endswith("}") and "Infinity" not in text.replace('"Infinity"', "")
    own = '"time_step_limit": [0.0, Infinity]'
    head, _, tail = text.partition('"time_step_limit"')
    path.write_text(head + own + tail[tail.index("]") + 1 :] if tail else text.rstrip()[:-1] + f", {own}}}")
    assert ", Infinity]" in path.read_text()
    return folder


def test_a_config_with_infinity_goes_through_every_command(source: Path, tmp_path: Path) -> None:
    assert surgery.inspect(source).anatomy.family
    out = convert(source, form="anchored", output=tmp_path / "out").output
    assert (out / "surgery" / "source" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    tokens = torch.randint(3, VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(1))
    options = RunOptions(device="cpu", dtype="float32")
    with torch.no_grad():
        models = [load_model(folder, options) for folder in (source, out)]
        first, second = (model(input_ids=tokens).logits for model in models)
    assert torch.equal(first, second)
    assert models[1].config.time_step_limit[1] == float("inf")
    revert(out, output=tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.parametrize("key", ["rope_theta", "attn_logit_softcapping"])
def test_a_number_that_is_used_must_be_finite(make_source: Any, tmp_path: Path, key: str) -> None:
    folder = tmp_path / "source"
    shutil.copytree(make_source("gemma2"), folder)
    text = (folder / "config.json").read_text().rstrip()[:-1]
    lines = [line for line in text.splitlines() if f'"{key}"' not in line]
    (folder / "config.json").write_text("\n".join(lines).rstrip().rstrip(",") + f',\n  "{key}": Infinity\n}}\n')
    with pytest.raises(SurgeryError, match=key):
        convert(folder, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
