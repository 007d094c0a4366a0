"""Verification passes on converted checkpoints, names the skipped checks, and records its results."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from surgery.checkpoint import load_json
from surgery.conversion import revert
from surgery.errors import CheckpointError, PlanRefusedError, UsageError
from surgery.verification import Verification, verify
from surgery.verification.checks import Check
from tests.conversion.conftest import tree

FILES = {
    "config.json carries the plan",
    "new tensors complete and finite",
    "code is this version's",
    "source tensors byte for byte",
    "other files byte for byte",
    "the source's config.json",
    "config.json is the conversion's",
}
FRESH = {
    "loads without surgery, offline",
    "same logits without surgery",
    "stock classes refuse it",
    "tokenizer loads, nothing waits",
}
COMPARING = {
    "source tensors byte for byte",
    "other files byte for byte",
    "the source's config.json",
    "operation off = source",
    "starts as the source",
}
OTHERS = {"loads", "operation off = source", "starts as the source", "ablation"}
N = {
    f"n: {name}"
    for name in (
        "multipliers",
        "token by token",
        "static cache",
        "left-padded",
        "left-padded, no position_ids",
        "left-padded with a cache",
        "right-padded",
        "packed",
        "batch of unequal rows",
        "sdpa = eager",
    )
}
# Compared with the mask of each layer.
BY_MASK = {"n: hole in the mask", "n: thinned cache", "n: pages"}
N |= BY_MASK


def by_status(result: Verification, status: str) -> set[str]:
    return {check.name for check in result.checks if check.status == status}


@pytest.mark.fresh
def test_a_fresh_conversion_passes_every_check(make_pair: Callable[..., Path], source: Path) -> None:
    out = make_pair()
    before = tree(source)
    result = verify(out, against=source)
    assert by_status(result, "passed") == FILES | FRESH | OTHERS | N
    assert result.verdict == f"{len(FILES | FRESH | OTHERS | N)} checks passed"
    assert len({check.name for check in result.checks}) == len(result.checks)
    values = {check.name: check.value for check in result.checks}
    assert values["operation off = source"] == values["starts as the source"] == 0.0
    assert result.sentence == "Your weights are untouched; the output is identical to the source's."
    wrong = replace(result, checks=(*result.checks, Check("another", "failed", "")))
    assert wrong.sentence is None
    assert values["same logits without surgery"] == 0.0
    assert all(0.0 <= float(values[name] or 0.0) <= 1e-4 for name in N)
    assert tree(source) == before


@pytest.mark.parametrize("form", ["bias", "constant", "logn", "paper", "none"])
def test_every_form_passes(make_pair: Callable[..., Path], source: Path, form: str) -> None:
    outputs = "gain" if form in ("constant", "none") else "unchanged"
    result = verify(make_pair(form=form, outputs=outputs, layers="0,2"), against=source)
    assert result.failed == ()
    skipped = {"starts as the source"} if form == "paper" else set()
    assert by_status(result, "skipped") == skipped
    assert by_status(result, "passed") == (FILES | OTHERS | N) - skipped


def test_without_the_source_the_comparing_checks_are_skipped_and_say_so(make_pair: Callable[..., Path]) -> None:
    result = verify(make_pair())
    assert by_status(result, "skipped") == COMPARING
    assert all("--against" in check.detail for check in result.checks if check.status == "skipped")
    assert result.against is None and result.failed == ()
    assert result.verdict.endswith(f", {len(COMPARING)} skipped")
    assert result.sentence is None, "nothing was compared"


def test_the_first_layers_only(make_pair: Callable[..., Path], source: Path) -> None:
    out = make_pair(form="paper")
    result = verify(out, against=source, layers=1)
    assert result.failed == ()
    assert result.environment["layers"] == "first 1"
    details = {check.name: check.detail for check in result.checks}
    assert "each of 1 layers" in details["ablation"]
    assert "layers first 1" in (out / "README.md").read_text()
    with pytest.raises(UsageError, match="the model has 3 layers"):
        verify(out, layers=4)


def test_the_first_layers_must_hold_an_operation(make_pair: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="the first is on layer 2"):
        verify(make_pair(layers="2"), layers=2)


def test_the_record_grows_and_the_card_shows_the_last_run(
    make_pair: Callable[..., Path], source: Path, tmp_path: Path
) -> None:
    out = make_pair()
    untouched = tree(out)
    verify(out, record=False)
    assert tree(out) == untouched
    first = verify(out)
    second = verify(out, against=source)
    runs = load_json(out / "surgery" / "verify.json")["runs"]
    assert [run["verdict"] for run in runs] == [first.verdict, second.verdict]
    assert runs[1]["checks"] == second.to_dict()["checks"]
    changed = {name for name, content in tree(out).items() if untouched.get(name) != content}
    assert changed == {"README.md", "surgery/verify.json"}
    card = (out / "README.md").read_text()
    assert card.count("## Verification") == 1 and f"**{second.verdict}**" in card
    assert all(f"| {check.name} | {check.status} |" in card for check in second.checks)
    assert "license: mit" in card
    revert(out, output=tmp_path / "back")
    assert tree(tmp_path / "back") == tree(source)


def test_no_absolute_path_is_recorded(make_pair: Callable[..., Path], source: Path, tmp_path: Path) -> None:
    verify(make_pair(), against=source)
    for name in ("README.md", "surgery/verify.json"):
        text = (tmp_path / "out" / name).read_text()
        assert source.parent.as_posix() not in text and tmp_path.as_posix() not in text


def test_what_cannot_be_verified(source: Path, tmp_path: Path, make_pair: Callable[..., Path]) -> None:
    with pytest.raises(PlanRefusedError, match="not a converted checkpoint"):
        verify(source)
    with pytest.raises(CheckpointError, match="nowhere"):
        verify(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="at least 16"):
        verify(make_pair(), length=8)
    with pytest.raises(CheckpointError, match="nowhere"):
        verify(tmp_path / "out", against=tmp_path / "nowhere")


@pytest.mark.parametrize("family", ["gemma2", "qwen3_moe", "gpt_neox", "gpt2"])
def test_families_without_a_tokenizer(make_source: Any, family: str, tmp_path: Path) -> None:
    """Sliding layers, renamed experts, fused projections, own spellings; also the first layers of each."""
    from surgery.conversion import convert

    source = make_source(family)
    out = convert(source, layers="all", output=tmp_path / "out").output
    for layers in (None, 2):
        result = verify(out, against=source, layers=layers, record=False)
        assert result.failed == (), result.failed


@pytest.mark.parametrize("form", ["anchored", "logn"])
def test_no_longer_than_a_model_has_positions_for(make_source: Any, form: str, tmp_path: Path) -> None:
    """CTRL reads its positions from a table, which ends."""
    from surgery.conversion import convert

    source = make_source("ctrl")
    result = verify(convert(source, form=form, output=tmp_path / "out").output, against=source, record=False)
    assert result.failed == (), result.failed
    (off,) = (check for check in result.checks if check.name == "operation off = source")
    assert off.detail.startswith("64 tokens (of 128; the model has no more positions)")


def test_files_alone_run_no_model(make_pair: Callable[..., Path], source: Path) -> None:
    """The checks of files, in a process that never loads torch; the record names them."""
    out = make_pair()
    code = (
        "import sys; from surgery.verification import verify; "
        "result = verify(sys.argv[1], against=sys.argv[2], files_only=True, name='other'); "
        "assert not result.failed and 'torch' not in sys.modules, result"
    )
    subprocess.run([sys.executable, "-c", code, str(out), str(source)], check=True)
    recorded = load_json(out / "surgery" / "verify.json")["runs"][-1]
    assert {check["name"] for check in recorded["checks"]} == FILES and recorded["passed"]
    assert recorded["model"] == "other" and recorded["environment"]["checked"] == "files alone"
    shard = next(out.glob("source-*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.unlink()
    shard.write_bytes(content)
    assert [check.name for check in verify(out, against=source, files_only=True).failed] == [
        "source tensors byte for byte"
    ]
    with pytest.raises(UsageError, match="has no effect"):
        verify(out, files_only=True, layers=1)
