"""A clean virtual environment in which this package is not installed loads a converted checkpoint, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.environments import bare_environment, run
from tests.interop.conftest import Operated, load, logits, tokens

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


def test_loads_generates_and_gives_the_same_logits(operated: Operated, tmp_path: Path) -> None:
    python = bare_environment(tmp_path / "environment")
    folder, ids = operated("llama"), tokens()
    said = run(python, tmp_path, "-c", PROGRAM, str(folder), json.dumps(ids.tolist()), str(tmp_path / "logits.pt"))
    model: Any = load(folder)
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), logits(model, ids))
    assert json.loads(said) == model.generate(ids[:, :8], max_new_tokens=4, do_sample=False)[0].tolist()
