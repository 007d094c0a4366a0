"""An operation whose numbers change nothing is dropped by a merge: what is left is a plain model, or nothing is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import surgery.commands.merge  # noqa: F401
from surgery.checkpoint.hub_upload import check_pushable
from surgery.conversion import convert
from surgery.errors import PlanRefusedError, UsageError
from surgery.loading import RunOptions, load_model
from surgery.recovery import finetune, merge
from tests.families import VOCABULARY
from tests.recovery.conftest import Converted, MakeRecipe

OPTIONS = RunOptions(device="cpu", dtype="float32")
OPERATIONS = "surgery-operations.safetensors"
LORA = {"what": "lora", "rank": 2}
LARGE = {"lr": 5e-2}
SCREENED = {"name": "screening", "start": {"threshold": 0.25, "softness": 0.5}}

# Each form with the numbers at which it changes nothing.
UNCHANGED: dict[str, dict[str, Any]] = {
    "anchored": {"name": "ssmax"},
    "some heads": {"name": "ssmax", "layers": "1", "heads": "0,2"},
    "bias and a gain": {"name": "ssmax", "form": "bias", "outputs": "gain"},
    "constant": {"name": "ssmax", "form": "constant"},
    "gain alone": {"name": "ssmax", "form": "none", "outputs": "gain"},
    "open": {"name": "screening", "open": True},
    "an endless window": {"name": "screening", "start": {"threshold": -2.0, "log2_window": 5000.0}},
    "open unit": {"name": "screening", "form": "unit", "open": True},
}
# What is more than a constant, with one number of one head that is not at its identity.
MOVED: dict[str, tuple[dict[str, Any], str, float]] = {
    "scale": ({"name": "ssmax"}, "scale", 1e-6),
    "bias": ({"name": "ssmax", "form": "bias"}, "bias", 1.0001),
    "gain": ({"name": "ssmax", "form": "bias", "outputs": "gain"}, "gain", 0.999),
    "threshold": ({"name": "screening", "open": True}, "threshold", 0.1),
    "window": ({"name": "screening", "open": True}, "log2_window", 3.0),
    "exponent of the unit": ({"name": "screening", "form": "unit", "open": True}, "renormalisation", 0.99),
}


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids).logits
    return found


def check_plain(folder: Path, source: Path, expected: torch.Tensor) -> None:
    """Transformers alone loads it, as the source's own class, and it gives these logits."""
    assert not list(folder.glob("*.py")) and not (folder / OPERATIONS).exists()
    assert (folder / "config.json").read_text() == (source / "config.json").read_text()
    stock = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32)
    assert not type(stock).__name__.startswith("Surgery")
    assert (logits(stock) - expected).abs().max() <= 1e-5 * expected.abs().max()
    check_pushable(folder)


@pytest.fixture
def source(converted: Converted) -> Path:
    return converted().parent / "source"


@pytest.mark.parametrize("form", UNCHANGED)
def test_every_form_at_its_identity_is_dropped(make_source: Callable[..., Path], tmp_path: Path, form: str) -> None:
    plain = make_source("llama")
    out = convert(plain, [UNCHANGED[form]], output=tmp_path / "converted").output
    result = merge(out, output=tmp_path / "merged")
    assert result.dropped == (UNCHANGED[form]["name"],) and result.changed_tensors == 0
    check_plain(tmp_path / "merged", plain, logits(load_model(out, OPTIONS)))
    before, after = (load_file(folder / "model.safetensors") for folder in (plain, tmp_path / "merged"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "dropped" in card and "byte for byte" in card


@pytest.mark.parametrize("kind", MOVED)
def test_one_number_of_one_head_keeps_the_operation(
    make_source: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    options, name, value = MOVED[kind]
    out = convert(make_source("llama"), [options], output=tmp_path / "converted").output
    numbers = load_file(out / OPERATIONS)
    own = next(tensor for tensor in sorted(numbers) if tensor.endswith(f".{name}"))
    numbers[own][-1] = value
    save_file(numbers, out / OPERATIONS, metadata={"format": "pt"})
    with pytest.raises(PlanRefusedError, match="is more than a constant for each head"):
        merge(out, output=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("form", ["paper", "logn"])
def test_a_form_without_an_identity_at_every_length_is_refused(
    make_source: Callable[..., Path], tmp_path: Path, form: str
) -> None:
    out = convert(make_source("llama"), [{"name": "ssmax", "form": form}], output=tmp_path / "converted").output
    with pytest.raises(PlanRefusedError, match=f"{form} is more than a constant"):
        merge(out, output=tmp_path / "merged")


def test_constants_are_written_and_the_rest_is_dropped(make_source: Callable[..., Path], tmp_path: Path) -> None:
    plain = make_source("llama")
    operations = [{"name": "ssmax", "form": "constant", "start": {"bias": 1.3}}, {"name": "screening", "open": True}]
    out = convert(plain, operations, output=tmp_path / "converted").output
    result = merge(out, output=tmp_path / "merged")
    assert result.dropped == ("screening",) and result.changed_tensors == 3
    check_plain(tmp_path / "merged", plain, logits(load_model(out, OPTIONS)))


def test_a_constant_of_1_needs_no_room_in_the_weights(make_source: Callable[..., Path], tmp_path: Path) -> None:
    """Qwen3 normalises each head's queries, so a temperature could not be written; one of exactly 1 need not be."""
    plain = make_source("qwen3")
    options = {"name": "ssmax", "form": "constant", "outputs": "gain", "start": {"gain": 0.8}}
    out = convert(plain, [options], output=tmp_path / "converted").output
    result = merge(out, output=tmp_path / "merged")
    assert result.dropped == () and result.changed_tensors == 3
    check_plain(tmp_path / "merged", plain, logits(load_model(out, OPTIONS)))


def test_a_model_trained_beside_the_operation(make_recipe: MakeRecipe, source: Path, tmp_path: Path) -> None:
    """The recipe converts, an adapter learns, and the operation stays as it was."""
    out = finetune(make_recipe(source, train=LORA, optimizer=LARGE, operations=[{"name": "ssmax"}])).output
    assert out is not None
    result = merge(out, output=tmp_path / "merged")
    assert result.dropped == ("ssmax",)
    expected = logits(load_model(out, OPTIONS))
    check_plain(tmp_path / "merged", source, expected)
    assert (expected - logits(load_model(source, OPTIONS))).abs().max() > 1e-2, "the training matters"
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "byte for byte" not in card and "lora: " in card
    record = json.loads((tmp_path / "merged" / "surgery" / "merge.json").read_text())
    assert record["dropped"] == ["ssmax"] and [entry["step"] for entry in record["history"]] == ["finetune"]
    # Its adapter is in these weights already, and the base was made for the run alone.
    with pytest.raises(UsageError, match="was not found") as refused:
        merge(out / "adapter", output=tmp_path / "again")
    assert "surgery merge" in str(refused.value.hint) and "out" in str(refused.value.hint)


def test_an_adapter_on_a_base_whose_operation_changes_nothing(
    surgery_command: Any,
    make_recipe: MakeRecipe,
    source: Path,
    tmp_path: Path,
) -> None:
    """One command: the adapter into the weights, and the operation away."""
    base = convert(source, "ssmax", output=tmp_path / "base").output
    adapter = finetune(make_recipe(base, train={**LORA, "merge": False}, optimizer=LARGE)).output
    assert adapter is not None
    expected = logits(PeftModel.from_pretrained(load_model(base, OPTIONS), str(adapter)))
    shown = surgery_command("merge", str(adapter), "-o", str(tmp_path / "merged"))
    assert shown.code == 0, shown.err
    assert "dropped ssmax" in shown.out and "12 tensors changed" in shown.out
    check_plain(tmp_path / "merged", source, expected)
    assert (expected - logits(load_model(source, OPTIONS))).abs().max() > 1e-2
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "byte for byte" not in card and "lora, by merge" in card
    document = json.loads(surgery_command("merge", str(adapter), "-o", str(tmp_path / "two"), "--json").out)
    assert document["dropped"] == ["ssmax"]


@pytest.mark.parametrize("kind", ["numbers in the adapter", "another operation"])
def test_an_adapter_keeps_operations_that_change_the_model(
    make_source: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    own = kind == "numbers in the adapter"
    base = convert(
        make_source("llama"), [{"name": "ssmax"}, *([] if own else [SCREENED])], output=tmp_path / "base"
    ).output
    told = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["ssmax"] if own else None)
    adapted = get_peft_model(load_model(base, OPTIONS), told)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = logits(adapted)
    result = merge(tmp_path / "adapter", output=tmp_path / "merged", base=base)
    assert result.dropped == () and (tmp_path / "merged" / "surgery" / "plan.json").is_file()
    assert (logits(load_model(tmp_path / "merged", OPTIONS)) - expected).abs().max() < 1e-4


def test_a_folder_that_another_program_saved_is_still_refused(make_source: Callable[..., Path], tmp_path: Path) -> None:
    out = convert(make_source("llama"), "ssmax", output=tmp_path / "converted").output
    again = Path(shutil.copytree(out, tmp_path / "again"))
    shutil.rmtree(again / "surgery")
    with pytest.raises(PlanRefusedError, match="its source is no plain checkpoint"):
        merge(again, output=tmp_path / "merged")
