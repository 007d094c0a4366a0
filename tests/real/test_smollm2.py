"""The whole job on a real checkpoint. ``make test-all`` fetches SmolLM2-135M-Instruct and names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import surgery

MODEL = os.environ.get("SURGERY_REAL_MODEL")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(MODEL is None, reason="SURGERY_REAL_MODEL names no model folder"),
]


@pytest.mark.parametrize("form", ["anchored", "bias", "logn"])
def test_identity_at_every_position_to_4096(form: str, tmp_path: Path) -> None:
    assert MODEL is not None
    out = surgery.convert(MODEL, "ssmax", form=form, output=tmp_path / form, mode="link").output
    result = surgery.verify(out, against=MODEL, length=4096)
    checks = {check.name: check for check in result.checks}
    assert result.failed == ()
    assert checks["starts as the source"].value == 0.0
    assert "4096 tokens" in checks["starts as the source"].detail


@pytest.mark.parametrize("kind", ["yarn", "ntk", "linear"])
def test_another_rope_alone_and_with_ssmax(kind: str, tmp_path: Path) -> None:
    assert MODEL is not None
    rope = {"name": "rope", "type": kind, "factor": 2}
    alone = surgery.convert(MODEL, [rope], output=tmp_path / "alone", mode="link").output
    both = surgery.convert(MODEL, [rope, {"name": "ssmax"}], output=tmp_path / "both", mode="link").output
    for out in (alone, both):
        result = surgery.verify(out, against=MODEL, length=256)
        assert result.failed == ()
        checks = {check.name: check for check in result.checks}
        assert checks["operation off = source"].value == 0.0 and checks["RoPE as planned"].status == "passed"
    assert checks["starts as the source, RoPE apart"].value == 0.0


def test_constants_become_a_stock_model_with_the_same_predictions(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert MODEL is not None
    out = surgery.convert(MODEL, "ssmax", form="constant", output=tmp_path / "constant").output
    numbers = load_file(out / "surgery-operations.safetensors")
    generator = torch.Generator().manual_seed(0)
    drawn = {name: 0.8 + 0.4 * torch.rand(value.shape, generator=generator) for name, value in numbers.items()}
    save_file(drawn, out / "surgery-operations.safetensors", metadata={"format": "pt"})
    result = surgery.merge(out, output=tmp_path / "plain")
    assert result.changed_tensors == len(numbers) == 30
    stock = AutoModelForCausalLM.from_pretrained(result.output, trust_remote_code=False)
    assert type(stock).__name__ == "LlamaForCausalLM"
    converted = AutoModelForCausalLM.from_pretrained(out)
    text = (Path(__file__).parents[2] / "docs" / "guide" / "ssmax.md").read_text()
    ids = torch.tensor([AutoTokenizer.from_pretrained(MODEL)(text)["input_ids"][:512]])
    with torch.no_grad():
        found, expected = (model(input_ids=ids).logits.log_softmax(-1) for model in (stock, converted))
    assert (found - expected).abs().max() <= 1e-3


def test_paper_form_starts_worse_and_a_short_training_recovers_some(tmp_path: Path) -> None:
    assert MODEL is not None
    from pydoc_data.topics import topics

    for index, (_, text) in enumerate(sorted(topics.items())):
        place = tmp_path / ("measuring" if index % 4 == 0 else "training")
        place.mkdir(exist_ok=True)
        with (place / f"{index // 16}.txt").open("a", encoding="utf-8") as file:
            file.write(text)
    out = surgery.convert(MODEL, "ssmax", form="paper", output=tmp_path / "paper", mode="link").output
    recipe = {
        "model": str(out),
        "output": str(tmp_path / "trained"),
        "data": {"text": str(tmp_path / "training"), "held_out": 0.1, "sequence_length": 512},
        "train": {"what": "scale"},
        "optimizer": {"scale_lr": 0.01},
        "budget": {"steps": 12},
        "evaluation": {"sequences": 2},
    }
    surgery.finetune(recipe)
    losses = {}
    for name, model in {"paper": out, "trained": tmp_path / "trained"}.items():
        measuring = [tmp_path / "measuring"]
        result = surgery.evaluate(model, against=MODEL, text=measuring, suite="loss", length=1024, documents=3)
        losses[name] = result.section("loss").results[0].overall.difference.value
    assert losses["paper"] > 0.05
    assert losses["trained"] < 0.9 * losses["paper"]
    assert surgery.verify(tmp_path / "trained", against=MODEL).failed == ()


def test_a_trial_recommends_only_what_an_interval_shows(tmp_path: Path) -> None:
    """Of sixteen real texts, at 512 tokens; whichever way it ends, sentence, numbers and commands agree."""
    from pydoc_data.topics import topics

    assert MODEL is not None
    whole = "\n\n".join(text for _, text in sorted(topics.items()))
    for number in range(16):
        size = len(whole) // 16
        (tmp_path / f"{number}.txt").write_text(whole[number * size : (number + 1) * size], encoding="utf-8")
    result = surgery.try_model(MODEL, [tmp_path], length=512, minutes=600, output=tmp_path / "out")
    source = {one.model: one for one in result.comparisons if one.other == "source"}
    assert set(source) == {"constant", "bias", "windows", "equal-windows"}
    assert source["constant"].answers.change > 0, "a calibration makes answers to unseen facts likelier"
    assert source["constant"].loss.change < 0.05
    (against,) = (one for one in result.comparisons if (one.model, one.other) == ("bias", "constant"))
    assert against.answers.low is not None
    assert ("bias" in result.recommended) <= (against.answers.low > 0)
    assert result.cache["windows"] < result.cache["source"]
    assert abs(result.cache["windows"] - result.cache["equal-windows"]) < 0.01 * result.cache["source"]
    assert len(result.commands) >= 2 * len(result.recommended)
