"""Results of mergekit on converted checkpoints, in the files that mergekit 0.1.5 writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery.checkpoint import open_checkpoint
from surgery.conversion import convert
from surgery.errors import ExitCode, PlanRefusedError, VerificationError
from surgery.verification import verify

FORMS = ("anchored", "paper", "bias")
PLAN = "merged models have one plan"


@pytest.fixture(scope="module")
def models(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source, and one conversion of each form."""
    place = tmp_path_factory.mktemp("models")
    found = {form: convert(source, form=form, output=place / form).output for form in FORMS}
    return {**found, "later": convert(source, form="paper", start={"scale": 0.7}, output=place / "later").output,
            "plain": source}  # fmt: skip


def merge(
    models: dict[str, Path], names: list[str], out: Path, *, base: str | None = None, dtype: str = "float32"
) -> Path:
    """The mean of models in the files of the first, or of the base: tensors that it has and the others have."""
    first = models[base or names[0]]
    tensors = {}
    for name in open_checkpoint(first).tensors:
        held = [
            load_file(models[model] / info.shard)[name]
            for model in names
            if (info := open_checkpoint(models[model]).tensors.get(name)) is not None
        ]
        tensors[name] = torch.stack(held).mean(0).to(getattr(torch, dtype)).contiguous()
    out.mkdir()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    kept = ["config.json", "tokenizer.json", "tokenizer_config.json", *(path.name for path in first.glob("*.py"))]
    for file in kept:
        shutil.copy(first / file, out)
    (out / "README.md").write_text("---\ntags:\n- mergekit\n- merge\n---\n# out\n")
    lines = ["merge_method: linear", *([f"base_model: {models[base]}"] if base else []), "models:"]
    lines += [f"  - model: {models[name]}\n    parameters: {{weight: 0.5}}" for name in names]
    (out / "mergekit_config.yml").write_text("\n".join([*lines, f"dtype: {dtype}", ""]))
    return out


@pytest.mark.parametrize("names", [["paper"], ["paper", "paper"], ["paper", "later"]])
def test_models_of_one_plan_pass(models: dict[str, Path], tmp_path: Path, names: list[str]) -> None:
    """Start values do not count: they are what the scales had, not what they mean."""
    result = verify(merge(models, names, tmp_path / "out"), files_only=True)
    assert not result.failed and PLAN in {check.name for check in result.checks if check.status == "passed"}


def test_models_of_different_forms_fail(models: dict[str, Path], tmp_path: Path) -> None:
    (check,) = verify(merge(models, ["anchored", "paper"], tmp_path / "out"), files_only=True).failed
    assert check.name == PLAN and "form or the plan does not match" in check.detail
    assert "form paper" in check.detail and "form anchored" in check.detail


def test_a_plain_model_in_the_merge_fails(models: dict[str, Path], tmp_path: Path) -> None:
    (check,) = verify(merge(models, ["paper", "plain"], tmp_path / "out"), files_only=True).failed
    assert check.name == PLAN and "scales are missing" in check.detail


def test_rounded_scales_fail(models: dict[str, Path], tmp_path: Path) -> None:
    (check,) = verify(merge(models, ["paper"], tmp_path / "out", dtype="bfloat16"), files_only=True).failed
    assert check.name == "new tensors complete and finite" and "BF16" in check.detail


def test_a_plain_base_drops_the_operations(models: dict[str, Path], tmp_path: Path) -> None:
    out = merge(models, ["paper"], tmp_path / "out", base="plain")
    with pytest.raises(VerificationError, match="merge dropped the operations") as caught:
        verify(out, files_only=True)
    assert caught.value.exit_code is ExitCode.VERIFICATION_FAILED


def test_scales_that_are_missing_fail(models: dict[str, Path], tmp_path: Path) -> None:
    out = merge(models, ["paper"], tmp_path / "out")
    tensors = load_file(out / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "ssmax" not in name}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    (check,) = verify(out, files_only=True).failed
    assert check.name == "new tensors complete and finite" and "missing" in check.detail


def test_models_that_are_not_here_are_named(models: dict[str, Path], tmp_path: Path) -> None:
    out = merge(models, ["paper"], tmp_path / "out")
    (out / "mergekit_config.yml").write_text("merge_method: linear\nmodels:\n  - model: me/elsewhere\n")
    (check,) = (check for check in verify(out, files_only=True).checks if check.name == PLAN)
    assert check.status == "skipped" and "me/elsewhere" in check.detail


def test_a_merge_of_plain_models_is_not_converted(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(PlanRefusedError, match="not a converted checkpoint"):
        verify(merge(models, ["plain"], tmp_path / "out"), files_only=True)
