"""The whole measurement, on models that were trained for two seconds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from surgery.errors import CheckpointError, SurgeryError, UsageError
from surgery.evaluation import EvaluationResult, evaluate
from surgery.loading import RunOptions
from tests.evaluation.conftest import save_tokenizer

CPU = RunOptions(device="cpu")


def test_perplexity_is_that_of_a_plain_loop(trained: Path, texts: Path) -> None:
    result = evaluate(trained, text=[texts], length=32, run=CPU)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    total, count = 0.0, 0
    for path in sorted(texts.iterdir()):
        ids = tokenizer(path.read_text(), return_tensors="pt").input_ids
        for piece in ids.split(32, dim=1):
            with torch.no_grad():
                total += model(input_ids=piece, labels=piece).loss.item() * (piece.shape[1] - 1)
            count += piece.shape[1] - 1
    assert result.data.predictions == count == result.overall.tokens
    assert result.overall.perplexity == pytest.approx(math.exp(total / count), abs=1e-5)
    assert result.against is None and result.verdict is None


def test_equal_models_differ_by_exactly_nothing(trained: Path, operated: Path, texts: Path) -> None:
    result = evaluate(operated, against=trained, text=[texts], length=32, buckets=[4, 8, 16], run=CPU)
    assert result.verdict is not None and result.verdict.word == "no difference"
    for bucket in (*result.buckets, result.overall):
        assert bucket.difference is not None and bucket.verdict == "no difference"
        assert (bucket.difference.value, bucket.difference.low, bucket.difference.high) == (0, 0, 0)
    assert [(bucket.first, bucket.last) for bucket in result.buckets] == [(1, 4), (5, 8), (9, 16), (17, 31)]
    assert result.model.operations == ("ssmax anchored",) and result.model.plan == "0123abcd"
    assert result.model.learned[0].moved_most == 0 and result.against.learned == ()


def test_shuffled_heads_lose(trained: Path, shuffled: Path, texts: Path) -> None:
    result = evaluate(shuffled, against=trained, text=[texts], length=32, run=CPU)
    assert result.verdict is not None and result.verdict.word == "lost" and result.overall.difference.low > 0.05
    back = evaluate(trained, against=shuffled, text=[texts], length=32, run=CPU)
    assert back.verdict is not None and back.verdict.word == "gained"
    assert back.overall.difference.value == -result.overall.difference.value


def test_batches_measure_the_same(trained: Path, texts: Path) -> None:
    one = evaluate(trained, text=[texts], length=32, run=CPU)
    many = evaluate(trained, text=[texts], length=32, run=RunOptions(device="cpu", batch_size=5))
    assert many.overall.loss.value == pytest.approx(one.overall.loss.value, abs=1e-6)
    assert many.data == one.data


def test_the_result_survives_json(trained: Path, operated: Path, texts: Path) -> None:
    result = evaluate(operated, against=trained, text=[texts], length=32, documents=3, run=CPU)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert EvaluationResult.from_dict(json.loads(text)) == result
    assert EvaluationResult.from_dict({"schema": 1, "kind": "evaluation", **json.loads(text)}) == result
    with pytest.raises(UsageError, match="result_schema is 9"):
        EvaluationResult.from_dict({**result.to_dict(), "result_schema": 9})
    with pytest.raises(UsageError, match="not an evaluation result: overall"):
        EvaluationResult.from_dict({**result.to_dict(), "overall": 3})


def test_progress_reaches_the_end_and_never_goes_back(trained: Path, shuffled: Path, texts: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    result = evaluate(
        shuffled, against=trained, text=[texts], length=32, run=CPU, on_progress=lambda *step: seen.append(step)
    )
    done = [step[0] for step in seen]
    total = 2 * (result.data.predictions + result.data.sequences)
    assert done == sorted(done) and done[-1] == total and {step[1] for step in seen} == {total}
    assert {step[2] for step in seen} >= {"loading tiny-base", "loss of tiny-shuffled"}


def test_warnings(trained: Path, texts: Path) -> None:
    short = evaluate(trained, text=[texts], length=4096, run=CPU)
    assert any("No text fills 4096 tokens; the longest sequence has 64" in warning for warning in short.warnings)
    limited = evaluate(trained, text=[texts], length=32, documents=1, run=CPU)
    assert any("One sequence gives no interval" in warning for warning in limited.warnings)
    assert any("At most 1 sequences were asked for" in warning for warning in limited.warnings)


def test_beyond_the_trained_length_is_measured_and_said(trained: Path, copy_of: Any, texts: Path) -> None:
    folder = copy_of(trained)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))
    result = evaluate(folder, text=[texts], length=32, run=CPU)
    assert any("made for 16 positions" in warning for warning in result.warnings)


def test_nan_says_where(trained: Path, copy_of: Any, texts: Path) -> None:
    folder = copy_of(trained, "broken")
    weights = load_file(folder / "model.safetensors")
    # Only the token that the first text has at position 2, and every six after it.
    token = AutoTokenizer.from_pretrained(folder)((texts / "text-0.txt").read_text()).input_ids[2]
    weights["lm_head.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SurgeryError, match=r"broken: the loss is not a finite number at \d+ of 31 .*positions 1-31"):
        evaluate(folder, text=[texts / "text-0.txt"], length=32, run=CPU)


def test_tokenizers_that_differ_are_refused(trained: Path, copy_of: Any, texts: Path) -> None:
    other = copy_of(trained, "other")
    save_tokenizer(other, order=-1)
    with pytest.raises(UsageError, match="tokenizers of tiny-base and other cut these texts into different tokens"):
        evaluate(trained, against=other, text=[texts], length=32, run=CPU)


def test_what_is_wrong_with_the_arguments(trained: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    for text, message in (
        ([], "no text was given"),
        ([tmp_path / "empty.txt"], "empty"),
        ([tmp_path / "short.txt"], "longest of the 1 texts has 3 tokens"),
        ([tmp_path / "missing.txt"], "no text file matches"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate(trained, text=text, length=64, run=CPU)
    for wrong in ({"length": 1}, {"documents": 0}, {"buckets": [3, 2]}):
        with pytest.raises(UsageError):
            evaluate(trained, text=[texts], run=CPU, **{"length": 32, **wrong})
    with pytest.raises(CheckpointError):
        evaluate(tmp_path / "nowhere", text=[texts], run=CPU)


def test_a_missing_tokenizer(trained: Path, copy_of: Any, texts: Path) -> None:
    folder = copy_of(trained)
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer could be loaded"):
        evaluate(folder, text=[texts], length=32, run=CPU)
