"""Every family with another RoPE: the frequencies that transformers runs, against an oracle that shares no code."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from surgery.anatomy import FAMILIES, read_anatomy
from surgery.anatomy.rope import LOCAL_THETA_KEY, PARTIAL_KEYS, THETA_KEYS
from surgery.checkpoint import open_checkpoint
from surgery.conversion import convert
from surgery.errors import PlanRefusedError
from surgery.loading import operations_off
from surgery.operations.rope.modules import rotary_modules
from surgery.verification.presentations import presentation_differences, randomized
from tests.families import TRAINED_LENGTH, families_for_the_matrix
from tests.runtime.test_family_matrix import BOUND, load, logits, tokens

FACTOR = 4
TYPES: dict[str, dict[str, Any]] = {
    "yarn": {"type": "yarn", "factor": FACTOR},
    "ntk": {"type": "ntk", "factor": FACTOR},
    "linear": {"type": "linear", "factor": FACTOR},
    "theta": {"type": "theta", "theta_factor": 50.0, "factor": FACTOR},
}


def oracle(kind: str, theta: float, dim: int) -> tuple[list[float], float]:
    """Frequencies by how often a pair turns over the trained length, found by counting rather than by a logarithm."""
    if kind in ("theta", "ntk"):
        theta *= 50.0 if kind == "theta" else FACTOR ** (dim / (dim - 2))
    base = [1.0 / theta ** (2 * pair / dim) for pair in range(dim // 2)]
    if kind not in ("linear", "yarn"):
        return base, 1.0
    if kind == "linear":
        return [frequency / FACTOR for frequency in base], 1.0

    def turns(pair: int) -> float:
        return TRAINED_LENGTH / (2 * math.pi * theta ** (2 * pair / dim))

    low = max((pair for pair in range(dim) if turns(pair) >= 32), default=0)
    high = min((pair for pair in range(dim) if turns(pair) <= 1), default=dim - 1)
    share = [min(max((pair - low) / ((high - low) or 1e-3), 0), 1) for pair in range(dim // 2)]
    return [f / FACTOR * part + f * (1 - part) for f, part in zip(base, share, strict=True)], 1 + math.log(FACTOR) / 10


@pytest.fixture(params=families_for_the_matrix())
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def longer(source: Path, tmp_path: Path, kind: str, *others: dict[str, Any]) -> Path:
    """A converted model; skipped if the family's class has no such type, after a check that the plan refuses it."""
    try:
        return convert(source, [{"name": "rope", **TYPES[kind]}, *others], output=tmp_path / kind).output
    except PlanRefusedError as refusal:
        row = FAMILIES[source.name.removeprefix("tiny-")]
        assert row.rope_types == ("default",) or row.without.get("rope", "no rotary positions") in refusal.message
        pytest.skip(refusal.message)


@pytest.mark.parametrize("kind", TYPES)
def test_the_stock_class_runs_the_planned_frequencies(make_source: Any, tmp_path: Path, family: str, kind: str) -> None:
    source = make_source(family)
    out = longer(source, tmp_path, kind)
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    assert type(model).__module__.startswith("transformers.models.")
    assert model.config.max_position_embeddings == FACTOR * TRAINED_LENGTH
    before = read_anatomy(open_checkpoint(source))
    changed = set(json.loads((out / "config.json").read_text())["surgery"]["operations"][0]["layers"])
    (module,) = rotary_modules(model).values()
    for rope in before.ropes:
        wanted = oracle(kind if changed >= set(rope.layers) else "none", rope.theta, rope.dim)
        prefix = "" if rope.label is None else f"{rope.label}_"
        found = getattr(module, f"{prefix}inv_freq"), getattr(module, f"{prefix}attention_scaling")
        assert torch.allclose(found[0].double(), torch.tensor(wanted[0], dtype=torch.float64), rtol=1e-6, atol=0)
        assert found[1] == pytest.approx(wanted[1], rel=1e-9)
    # What is switched off is the source, exactly; on, only the first position, which sees itself alone, is the same.
    expected, ids = logits(load(source), tokens()), tokens()
    with operations_off(model):
        assert torch.equal(logits(model, ids), expected)
    moved = (logits(model, ids) - expected).abs()
    assert moved[:, 0].max() <= 1e-5 and moved.max() > 1e-3


@pytest.mark.parametrize("form", ["anchored", "paper"])
def test_with_ssmax_in_one_plan(make_source: Any, tmp_path: Path, family: str, form: str) -> None:
    kind = "yarn" if "yarn" in FAMILIES[family].rope_types else "ntk"
    source = make_source(family)
    out = longer(source, tmp_path, kind, {"name": "ssmax", "form": form, "layers": "all"})
    model, expected = load(out), logits(load(source), tokens())
    with operations_off(model):
        assert torch.equal(logits(model, tokens()), expected)
    with operations_off(model, keep=("rope",)):
        rope_alone = logits(model, tokens())
    start = logits(model, tokens())
    assert torch.equal(start, rope_alone) == (form == "anchored")
    assert (start - expected).abs().max() > 1e-3
    with randomized(model, spread=0.3):
        differences = presentation_differences(model, tokens())
    assert len(differences) == (9 if model._supports_sdpa else 8)
    found = {name: value for name, value in differences.items() if not value <= BOUND}
    assert {name: value for name, value in found.items() if name not in FAMILIES[family].breaks} == {}
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved"), tokens()), start)


def test_what_config_json_leaves_out_is_what_transformers_assumes(
    make_source: Any, tmp_path: Path, family: str
) -> None:
    if "rope" in FAMILIES[family].without or FAMILIES[family].rope == "none":
        pytest.skip("no rope on this family")
    source = Path(shutil.copytree(make_source(family), tmp_path / "silent"))
    config = json.loads((source / "config.json").read_text())
    for key in ("rope_parameters", "rope_scaling", LOCAL_THETA_KEY, *THETA_KEYS, *PARTIAL_KEYS):
        config.pop(key, None)
    (source / "config.json").write_text(json.dumps(config))
    assumed = AutoConfig.from_pretrained(source).rope_parameters
    for rope in read_anatomy(open_checkpoint(source)).ropes:
        own = assumed if rope.label is None else assumed[rope.label]
        assert own["rope_theta"] == rope.theta and own.get("rope_type", "default") == rope.type
        whole = own.get("partial_rotary_factor") or 1.0
        assert whole == rope.parameters.get("partial_rotary_factor", 1.0)
