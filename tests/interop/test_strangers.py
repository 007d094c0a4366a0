"""Programs that have never heard of this package, and programs that import it, before transformers or after."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.anatomy import FAMILIES
from surgery.checkpoint import load_json
from surgery.conversion import revert
from surgery.verification.fresh import FreshRequest, ask
from tests.families import REPRESENTATIVES
from tests.interop.conftest import Operated, load, logits, scales, tokens
from tests.recording import lacking

SAVED = "saved again"


def problems(model: Any, answer: dict[str, Any], found: Any) -> list[str]:
    """Differences between the answers of a fresh process on a folder and the model loaded here."""
    if "error" in answer:
        return [answer["error"]]
    loaded = answer["load"]
    start = tokens()[:, :8]
    expectations = {
        "class": loaded["class"] == type(model).__name__,
        "code from the folder": loaded["module"].startswith("transformers_modules."),
        "all tensors": loaded["missing"] == loaded["unexpected"] == [],
        "float32": list(loaded["parameters"].values()) == ["float32"] * len(scales(model)),
        "same logits": torch.equal(torch.from_numpy(found), logits(model)),
        "same text": loaded["generated"] == model.generate(start, max_new_tokens=4, do_sample=False)[0].tolist(),
        "stock class tried": set(answer["refusals"]) == {"default", "sdpa", "eager"},
    }
    for way, said in answer["refusals"].items():
        expectations[f"stock class refuses with {way}, and says why"] = said is not None and "surgery" in said
    return [name for name, holds in expectations.items() if not holds]


@pytest.mark.parametrize(
    "families",
    [REPRESENTATIVES, pytest.param(sorted(FAMILIES), marks=[pytest.mark.slow, pytest.mark.families])],
    ids=["a few", "all"],
)
def test_a_program_without_surgery_loads_every_family_and_stock_classes_refuse(
    operated: Operated, tmp_path: Path, families: Sequence[str]
) -> None:
    """Also a folder that a registered model saved. One process for all, because its start takes long."""
    models = {family: load(operated(family)) for family in families if not lacking(family)}
    folders = {family: operated(family) for family in models}
    models[SAVED], folders[SAVED] = load(operated()), tmp_path / "model"
    with torch.no_grad():
        for parameter in scales(models[SAVED]).values():
            parameter.mul_(torch.linspace(0.5, 1.5, 4))
    models[SAVED].save_pretrained(folders[SAVED])
    requests = [
        FreshRequest(
            folder=folders[name],
            stock_class=FAMILIES.get(name, FAMILIES["llama"]).architecture,
            attn_implementation=model.config._attn_implementation,
            tokens=tokens()[0].tolist(),
            text="",
            new_tensors=list(scales(model)),
            has_tokenizer=False,
        )
        for name, model in models.items()
    ]
    answers = dict(zip(models, ask(requests), strict=True))
    found = {name: problems(model, *answers[name]) for name, model in models.items()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_saving_a_registered_model_writes_code_and_auto_map(operated: Operated, tmp_path: Path) -> None:
    model = load(operated("qwen3_moe"))
    model.save_pretrained(tmp_path / "saved")
    code = (operated("qwen3_moe") / "modeling_surgery.py").read_bytes()
    assert (tmp_path / "saved" / "modeling_surgery.py").read_bytes() == code
    saved, first = load_json(tmp_path / "saved" / "config.json"), load_json(operated("qwen3_moe") / "config.json")
    for key in ("auto_map", "model_type", "architectures", "surgery", "initializer_range", "attn_implementation"):
        assert saved[key] == first[key], key


def test_what_transformers_reads_in_a_modules_source_is_the_familys(
    operated: Operated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether experts may run grouped; also where nothing was asked of the family's own class before."""
    own: Any = type(load(operated("qwen3_moe")))
    remembered = "_can_set_experts_implementation_cached_value"
    for kind in own.__mro__:
        if remembered in vars(kind):
            monkeypatch.delattr(kind, remembered)
    assert own._can_set_experts_implementation() and own._can_set_attn_implementation()
    assert not type(load(operated("llama")))._can_set_experts_implementation()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_experts_run_as_the_familys_own_class_runs_them(operated: Operated, tmp_path: Path) -> None:
    """In a process that did not use the class before, because transformers caches it."""
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M\n"
        "print([M.from_pretrained(f, trust_remote_code=True).config._experts_implementation for f in sys.argv[1:]])"
    )
    stock = tmp_path / "stock"
    revert(operated("qwen3_moe"), output=stock)
    command = [sys.executable, "-c", code, str(operated("qwen3_moe")), str(stock)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1].replace("'", '"'))
    assert found == ["grouped_mm", "grouped_mm"]


ORDERS = {
    "surgery first": "import surgery, sys; assert 'transformers' not in sys.modules; import transformers",
    "a config class first": "import surgery, transformers; transformers.AfmoeConfig()",
    "transformers first": "import transformers; from transformers import AutoModelForCausalLM; import surgery",
}
CHECK = """
import json, sys
from transformers import AutoConfig, AutoModelForCausalLM, AutoModel
folders = json.loads(sys.argv[1])
for folder in folders:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    assert type(config).__module__ == "surgery.runtime.modeling_surgery", type(config)
for auto in (AutoModelForCausalLM, AutoModel):
    model = auto.from_pretrained(folders[0], trust_remote_code=False)
    assert type(model).__module__ == "surgery.runtime.modeling_surgery", type(model)
print(len(folders))
"""


@pytest.mark.parametrize(
    "order", [pytest.param(name, marks=() if name == "transformers first" else pytest.mark.slow) for name in ORDERS]
)
def test_import_surgery_registers_the_types(operated: Operated, order: str) -> None:
    folders = [str(operated(family)) for family in REPRESENTATIVES]
    process = subprocess.run(
        [sys.executable, "-c", ORDERS[order] + CHECK, json.dumps(folders)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.strip() == str(len(REPRESENTATIVES))
