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

from surgery.checkpoint import resolve
from surgery.errors import CheckpointError, SurgeryError, UsageError
from surgery.evaluation import EvaluationResult, evaluate
from surgery.evaluation.session import _vocabulary
from surgery.loading import RunOptions
from tests.evaluation.conftest import save_tokenizer

CPU = RunOptions(device="cpu")


def _loss(*arguments: Any, **options: Any) -> tuple[EvaluationResult, Any]:
    """The result of the suite ``loss``, and its one section."""
    result = evaluate(*arguments, **{"suite": "loss", "length": 32, "run": CPU, **options})
    return result, result.section("loss")


def test_perplexity_is_that_of_a_plain_loop(trained: Path, texts: Path) -> None:
    result, section = _loss(trained, text=[texts])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    total, count = 0.0, 0
    for path in sorted(texts.iterdir()):
        ids = tokenizer(path.read_text(), return_tensors="pt").input_ids
        for piece in ids.split(32, dim=1):
            with torch.no_grad():
                total += model(input_ids=piece, labels=piece).loss.item() * (piece.shape[1] - 1)
            count += piece.shape[1] - 1
    (own,) = section.results
    assert section.data.predictions == count == own.overall.tokens
    assert own.overall.perplexity == pytest.approx(math.exp(total / count), abs=1e-5)
    assert result.against is None and result.verdicts == () and own.finding is None


def test_sliding_perplexity_is_that_of_a_plain_loop(trained: Path, texts: Path) -> None:
    part = {"kind": "sliding", "length": 24, "stride": 8, "tokens": 56, "documents": 3}
    result = evaluate(trained, text=[texts], suite={"name": "own", "parts": [part]}, run=CPU)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    total, count = 0.0, 0
    for path in sorted(texts.iterdir())[:3]:
        ids = tokenizer(path.read_text(), return_tensors="pt").input_ids[:, :56]
        for place in range(1, ids.shape[1]):
            # The window that first reaches this token ends at 24, 32, 40, ... or at the end.
            end = min(ids.shape[1], 24 + -(-max(0, place + 1 - 24) // 8) * 8)
            start = max(0, end - 24)
            with torch.no_grad():
                logits = model(input_ids=ids[:, start:place]).logits[0, -1]
            total += torch.nn.functional.cross_entropy(logits, ids[0, place]).item()
            count += 1
    section = result.section("sliding")
    assert section.data.predictions == count == section.results[0].overall.tokens
    assert section.results[0].overall.perplexity == pytest.approx(math.exp(total / count), abs=1e-5)


def test_equal_models_differ_by_exactly_nothing(trained: Path, operated: Path, texts: Path) -> None:
    suite = {
        "name": "own",
        "parts": [
            {"kind": "loss", "length": 32, "buckets": [4, 8, 16]},
            {"kind": "retrieval", "task": "induction", "lengths": [48], "depths": [0.0, 1.0], "samples": 2},
        ],
    }
    result = evaluate(operated, against=trained, text=[texts], suite=suite, run=CPU)
    (verdict,) = result.verdicts
    assert verdict.word == "no difference" and len(verdict.findings) == 2
    assert all(finding.word == "no difference" for finding in verdict.findings)
    (own,) = result.section("loss").results
    for bucket in (*own.buckets, own.overall):
        assert bucket.difference is not None and bucket.verdict == "no difference"
        assert (bucket.difference.value, bucket.difference.low, bucket.difference.high) == (0, 0, 0)
    assert [(bucket.first, bucket.last) for bucket in own.buckets] == [(1, 4), (5, 8), (9, 16), (17, 31)]
    score = result.section("retrieval").results[0].overall
    assert (score.difference.value, score.difference.low, score.difference.high) == (0, 0, 0)
    (model,) = result.models
    assert model.operations == ("ssmax anchored",) and model.plan == "0123abcd"
    assert model.learned[0].moved_most == 0 and result.against.learned == ()


def test_shuffled_heads_lose(trained: Path, shuffled: Path, texts: Path) -> None:
    probe = {"kind": "retrieval", "task": "induction", "lengths": [40], "depths": [1.0], "samples": 12}
    suite = {"name": "own", "parts": [{"kind": "loss", "length": 32, "documents": None}, probe]}
    result = evaluate(shuffled, against=trained, text=[texts], suite=suite, run=CPU)
    assert result.verdicts[0].word == "lost" and result.section("loss").results[0].overall.difference.low > 0.05
    back, section = _loss(trained, against=shuffled, text=[texts])
    assert back.verdicts[0].word == "gained"
    forward = result.section("loss").results[0].overall.difference
    assert section.results[0].overall.difference.value == -forward.value


def test_several_models_against_one_base(trained: Path, operated: Path, shuffled: Path, texts: Path) -> None:
    result, section = _loss([operated, shuffled], against=trained, text=[texts])
    assert [use.name for use in result.models] == ["tiny-ssmax", "tiny-shuffled"]
    assert [verdict.word for verdict in result.verdicts] == ["no difference", "lost"]
    assert [own.model for own in section.results] == [0, 1]


def test_the_wrong_way_round_is_said(trained: Path, operated: Path, texts: Path) -> None:
    for model, base, told in ((trained, operated, True), (operated, trained, False), (operated, operated, False)):
        result, _ = _loss(model, against=base, text=[texts])
        assert any("the other way round" in warning for warning in result.warnings) is told


def test_a_model_against_itself(trained: Path, texts: Path) -> None:
    result, _ = _loss(trained, against=trained, text=[texts])
    assert result.verdicts[0].word == "no difference"


def test_batches_and_chunks_measure_the_same(trained: Path, texts: Path) -> None:
    _, one = _loss(trained, text=[texts])
    _, many = _loss(trained, text=[texts], run=RunOptions(device="cpu", batch_size=5))
    chunked = {"name": "own", "parts": [{"kind": "loss", "length": 32, "documents": None, "chunk": 16}]}
    _, parts = _loss(trained, text=[texts], suite=chunked, length=None)
    for other in (many, parts):
        assert other.results[0].overall.loss.value == pytest.approx(one.results[0].overall.loss.value, abs=1e-6)
        assert other.data == one.data


def test_the_result_survives_json(trained: Path, operated: Path, texts: Path) -> None:
    result = evaluate(operated, against=trained, text=[texts], length=32, documents=3, run=CPU)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert EvaluationResult.from_dict(json.loads(text)) == result
    assert EvaluationResult.from_dict({"schema": 1, "kind": "evaluation", **json.loads(text)}) == result
    with pytest.raises(UsageError, match="result_schema is 9"):
        EvaluationResult.from_dict({**result.to_dict(), "result_schema": 9})
    with pytest.raises(UsageError, match="not an evaluation result: models"):
        EvaluationResult.from_dict({**result.to_dict(), "models": 3})


def test_progress_reaches_the_end_and_never_goes_back(trained: Path, shuffled: Path, texts: Path) -> None:
    seen: list[dict[str, Any]] = []
    result = evaluate(shuffled, against=trained, text=[texts], run=CPU, length=32, on_event=seen.append)
    done = [event["done"] for event in seen if event["event"] == "tokens"]
    (total,) = {event["total"] for event in seen if event["event"] in ("plan", "tokens", "done")}
    assert done == sorted(done) and done[-1] == total
    assert [event["model"] for event in seen if event["event"] == "loading"] == ["tiny-shuffled", "tiny-base"]
    assert len([event for event in seen if event["event"] == "part"]) == 2 * len(result.sections)


def test_warnings(trained: Path, texts: Path) -> None:
    short, _ = _loss(trained, text=[texts], length=4096)
    assert any(": the longest sequence has 64 tokens of 4096; " in warning for warning in short.warnings)
    limited, _ = _loss(trained, text=[texts], documents=1)
    assert any("One document gives no interval" in warning for warning in limited.warnings)
    assert any(": one sequence was asked for; the texts are longer." in warning for warning in limited.warnings)


def test_beyond_the_trained_length_is_measured_and_said(trained: Path, copy_of: Any, texts: Path) -> None:
    folder = copy_of(trained)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))
    result, _ = _loss(folder, text=[texts])
    assert any("has 16 positions" in warning for warning in result.warnings)


def test_nan_says_where(trained: Path, copy_of: Any, texts: Path) -> None:
    folder = copy_of(trained, "broken")
    weights = load_file(folder / "model.safetensors")
    # Only the token that the first text has at position 2, and every six after it.
    token = AutoTokenizer.from_pretrained(folder)((texts / "text-0.txt").read_text()).input_ids[2]
    weights["lm_head.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SurgeryError, match=r"broken: the loss is not a finite number at \d+ of 31 .*positions 1-31"):
        _loss(folder, text=[texts / "text-0.txt"])


def test_tokenizers_that_differ_are_refused(trained: Path, copy_of: Any, texts: Path) -> None:
    other = copy_of(trained, "other")
    save_tokenizer(other, order=-1)
    with pytest.raises(UsageError, match="tokenizers of tiny-base and other split these texts into different tokens"):
        _loss(trained, against=other, text=[texts])


def test_what_is_wrong_with_the_arguments(trained: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    for text, message in (
        ([], "no text is given"),
        ([tmp_path / "empty.txt"], "empty"),
        ([tmp_path / "short.txt"], "longest of the 1 texts has 3 tokens"),
        ([tmp_path / "missing.txt"], "no text file matches"),
    ):
        with pytest.raises(UsageError, match=message):
            _loss(trained, text=text, length=64)
    for wrong in ({"length": 1}, {"documents": 0}, {"suite": "los"}, {"suite": tmp_path / "none.yaml"}):
        with pytest.raises(UsageError):
            _loss(trained, text=[texts], **wrong)
    with pytest.raises(UsageError, match="no part of the suite retrieval reads texts"):
        _loss(trained, text=[texts], suite="retrieval", length=None)
    with pytest.raises(UsageError, match="--length has no effect"):
        _loss(trained, suite="retrieval")
    with pytest.raises(CheckpointError):
        _loss(tmp_path / "nowhere", text=[texts])


def test_a_missing_tokenizer(trained: Path, copy_of: Any, texts: Path) -> None:
    folder = copy_of(trained)
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="the tokenizer could not be loaded"):
        _loss(folder, text=[texts])


def test_a_model_that_is_not_causal(texts: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=63, initializer_range=0.5, **small)).save_pretrained(tmp_path / "encoder")
    save_tokenizer(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="not causal: changing a token changes earlier predictions"):
        _loss(tmp_path / "encoder", text=[texts])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, 262208),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "vocab_size": 63}}, 63),
        ({"model_type": "of-ones-own", "vocab_size": 63}, 63),
        ({"model_type": "of-ones-own"}, None),
    ],
)
def test_words_that_a_config_leaves_to_its_family(config: dict[str, Any], words: int | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = resolve(tmp_path)
    if words is None:
        with pytest.raises(CheckpointError, match="no vocab_size"):
            _vocabulary(source)
    else:
        assert _vocabulary(source) == words
