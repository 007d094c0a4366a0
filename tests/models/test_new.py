"""`surgery new`: what it plans is what it makes, and any program of transformers loads it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.checkpoint import open_checkpoint
from surgery.conversion import convert, revert
from surgery.errors import CheckpointError, UsageError
from surgery.models import ARCHITECTURES, new, plan_new
from tests.commands.conftest import surgery as surgery_command
from tests.tokenizers import save_tiny_tokenizer, write_texts

surgery = surgery_command  # the fixture
DECODERS = ("softmax", "ssmax")


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("changes", [{}, {"untied": True, "mlp_width": 48}], ids=["tied", "untied"])
def test_the_plan_counts_the_parameters(name: str, changes: dict[str, Any], sizes: Any, tmp_path: Path) -> None:
    plan = plan_new(name, {**sizes, **changes}, vocab_size=50)
    made = new(name, tmp_path / "out", vocab_size=50, **sizes, **changes)
    assert made.plan == plan
    model = load(made.output)
    assert sum(parameter.numel() for parameter in model.parameters()) == plan.parameters
    logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 3, 50) and logits.isfinite().all()


def test_the_seed_decides_the_weights(sizes: Any, tmp_path: Path) -> None:
    """And a model with the operation has the same weights as its twin without."""
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    softmax = load(new("softmax", tmp_path / "a", vocab_size=50, **sizes).output).state_dict()
    again = load(new("softmax", tmp_path / "b", vocab_size=50, **sizes).output).state_dict()
    other = load(new("softmax", tmp_path / "c", vocab_size=50, seed=1, **sizes).output).state_dict()
    operated = load(new("ssmax", tmp_path / "d", vocab_size=50, **sizes).output).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(softmax[name], again[name]) and not torch.equal(softmax[name], other[name])
    assert all(torch.equal(value, operated[key]) for key, value in softmax.items())


@pytest.mark.parametrize(("form", "expected"), [("paper", {"scale"}), ("bias", {"scale", "bias"})])
def test_the_multiplier_is_there_from_the_start(form: str, expected: set[str], sizes: Any, tmp_path: Path) -> None:
    model = load(new("ssmax", tmp_path / "out", vocab_size=50, form=form, **sizes).output)
    module = model.model.layers[1].self_attn.ssmax
    assert {name for name, _ in module.named_parameters()} == expected
    if form == "paper":  # the multiplier averages 1 over the length, as in the paper
        mean = sum(math.log(n) for n in range(1, 65)) / 64
        assert module.scale.tolist() == pytest.approx([1 / mean, 1 / mean])
    started = load(new("ssmax", tmp_path / "own", vocab_size=50, form=form, start={"scale": 0.25}, **sizes).output)
    assert started.model.layers[0].self_attn.ssmax.scale.tolist() == [0.25, 0.25]


def test_the_softmax_twin_is_inside(sizes: Any, tmp_path: Path) -> None:
    made = new("ssmax", tmp_path / "out", vocab_size=50, **sizes)
    revert(made.output, output=tmp_path / "back")
    new("softmax", tmp_path / "twin", vocab_size=50, **sizes)
    shard = "model.safetensors"
    assert (tmp_path / "back" / shard).read_bytes() == (tmp_path / "twin" / shard).read_bytes()
    assert not list(tmp_path.glob("*.partial-*"))


def test_a_new_model_is_converted(sizes: Any, tmp_path: Path) -> None:
    """The conversion accepts the record of the new model, and keeps it."""
    made = new("softmax", tmp_path / "softmax", vocab_size=50, **sizes)
    result = convert(made.output, "ssmax", output=tmp_path / "out", form="paper")
    kept = json.loads((result.output / "surgery/source/surgery/new.json").read_text())
    assert kept["architecture"] == "softmax" and kept["options"]["layers"] == 2


def test_a_tokenizer_is_trained_on_texts(sizes: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_texts(tmp_path / "texts")
    made = new("softmax", tmp_path / "out", vocab_size=300, train_tokenizer=[str(tmp_path / "texts")], **sizes)
    tokenizer = AutoTokenizer.from_pretrained(made.output)
    text = "seven of 48213 — αβ\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("48213")["input_ids"]) == 5
    assert tokenizer.eos_token_id is not None and tokenizer.model_max_length == 64
    config = json.loads((made.output / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer) == made.plan.vocabulary_size
    assert config["eos_token_id"] == tokenizer.eos_token_id
    # The next model takes the tokenizer of this one.
    second = new("ssmax", tmp_path / "second", tokenizer=made.output, **sizes)
    assert AutoTokenizer.from_pretrained(second.output)(text) == tokenizer(text)
    assert (second.output / "tokenizer.json").read_bytes() == (made.output / "tokenizer.json").read_bytes()


def test_a_tokenizer_is_copied_with_its_special_tokens(sizes: Any, tmp_path: Path) -> None:
    save_tiny_tokenizer(tmp_path / "tokenizer")
    made = new("softmax", tmp_path / "out", tokenizer=tmp_path / "tokenizer", **sizes)
    config = json.loads((made.output / "config.json").read_text())
    assert [config[f"{name}_token_id"] for name in ("pad", "bos", "eos")] == [0, 1, 2]
    with pytest.raises(UsageError, match="of its own"):
        plan_new("softmax", sizes, tokenizer=tmp_path / "tokenizer", vocab_size=50)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "no vocabulary"),
        ({"train_tokenizer": ["texts"]}, "needs --vocab-size"),
        ({"train_tokenizer": ["no-such-text"], "vocab_size": 300}, "no text file matches"),
        ({"train_tokenizer": ["texts"], "vocab_size": 256}, "at least 257"),
        ({"tokenizer": "."}, "no tokenizer.json"),
        ({"vocab_size": 50, "width": 33}, "multiple of 4"),
        ({"vocab_size": 50, "depth": 3}, "depth: unknown option"),
        ({"vocab_size": 50, "length": 1}, "length 1"),
    ],
)
def test_wrong_arguments_leave_nothing(given: dict[str, Any], expected: str, sizes: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=expected):
        new("softmax", tmp_path / "out", **{**sizes, **given})
    assert not list(tmp_path.iterdir())


def test_an_operation_and_an_architecture_check_their_options(sizes: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no parameter 'bias'"):
        plan_new("ssmax", {**sizes, "start": {"bias": 1.0}}, vocab_size=50)
    with pytest.raises(UsageError, match="unknown architecture"):
        plan_new("mamba", sizes, vocab_size=50)
    with pytest.raises(CheckpointError, match="no folder"):
        plan_new("softmax", sizes, tokenizer=tmp_path / "nowhere")


def test_an_earlier_output_is_replaced_by_force_alone(sizes: Any, tmp_path: Path) -> None:
    for name in DECODERS:
        new(name, tmp_path / name, vocab_size=50, **sizes)
        with pytest.raises(UsageError, match="earlier output"):
            new(name, tmp_path / name, vocab_size=60, **sizes)
        new(name, tmp_path / name, vocab_size=60, force=True, **sizes)
        assert open_checkpoint(tmp_path / name).config["vocab_size"] == 60


def test_the_command_has_the_flags_of_the_schema(surgery: Any, tmp_path: Path) -> None:
    for name, architecture in ARCHITECTURES.items():
        text = surgery("new", name, "--help").out
        assert all(f"--{field.replace('_', '-')}" in text for field in architecture.options.model_fields)
    assert "--form" not in surgery("new", "softmax", "--help").out
    flags = ("--vocab-size", 50, "--layers", 1, "--heads", 2, "--width", 32, "--length", 64, "-o", tmp_path / "out")
    planned = surgery("new", "ssmax", *flags, "--form", "bias", "--dry-run", "--json").document()
    assert planned["kind"] == "new-plan" and planned["options"]["form"] == "bias"
    assert not (tmp_path / "out").exists()
    made = surgery("new", "ssmax", *flags, "--form", "bias", "--json").document()
    assert made["kind"] == "new" and made["parameters"] == planned["parameters"]
    shown = surgery("new", "ssmax", *flags)
    assert shown.code == 2 and "--force" in shown.err


@pytest.mark.slow  # starts a process
def test_help_and_plans_import_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from surgery.models import ARCHITECTURES, plan_new\n"
        "import surgery.commands.new\n"
        "[plan_new(name, vocab_size=50) for name in ARCHITECTURES]\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys(), sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
