"""A clean virtual environment in which this package is not installed loads a converted checkpoint, offline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.anatomy import FAMILIES
from tests.environments import bare_environment, run
from tests.families import REPRESENTATIVES
from tests.interop.conftest import Operated, load, logits, tokens
from tests.recording import lacking

PROGRAM = """
import importlib.util, json, sys
spec = importlib.util.find_spec("surgery")  # an editable install may leave a folder of data files, without code
assert spec is None or spec.origin is None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
ids = torch.tensor(json.loads(sys.argv[2]))
with torch.no_grad():
    torch.save(model(input_ids=ids).logits, sys.argv[3])
print(json.dumps(model.generate(ids[:, :8], max_new_tokens=4, do_sample=False)[0].tolist()))
"""

# Of every folder, since starting Python takes the time.
EVERY = """
import importlib.util, json, pathlib, sys, traceback
spec = importlib.util.find_spec("surgery")
assert spec is None or spec.origin is None
import torch, transformers
transformers.logging.set_verbosity_error()
ids, failures = torch.tensor(json.loads(sys.argv[2])), {}
for name, folder in json.loads(sys.argv[1]).items():
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        with torch.no_grad():
            torch.save(model(input_ids=ids).logits.float(), pathlib.Path(sys.argv[3]) / f"{name}.pt")
    except Exception:
        failures[name] = traceback.format_exc()
print(json.dumps(failures))
"""


def test_loads_generates_and_gives_the_same_logits(operated: Operated, tmp_path: Path) -> None:
    python = bare_environment(tmp_path / "environment")
    folder, ids = operated("llama"), tokens()
    said = run(python, tmp_path, "-c", PROGRAM, str(folder), json.dumps(ids.tolist()), str(tmp_path / "logits.pt"))
    model: Any = load(folder)
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), logits(model, ids))
    assert json.loads(said) == model.generate(ids[:, :8], max_new_tokens=4, do_sample=False)[0].tolist()


@pytest.mark.parametrize(
    "families",
    [REPRESENTATIVES, pytest.param(sorted(FAMILIES), marks=[pytest.mark.slow])],
    ids=["a few", "all"],
)
def test_every_family_loads_and_gives_the_same_logits(
    operated: Operated, families: Sequence[str], tmp_path: Path
) -> None:
    python = bare_environment(tmp_path / "environment")
    folders = {family: str(operated(family)) for family in families if not lacking(family)}
    said = run(python, tmp_path, "-c", EVERY, json.dumps(folders), json.dumps(tokens().tolist()), str(tmp_path))
    assert json.loads(said.splitlines()[-1]) == {}
    others = [
        family
        for family, folder in folders.items()
        if not torch.equal(torch.load(tmp_path / f"{family}.pt", weights_only=True), logits(load(Path(folder))))
    ]
    assert others == []
