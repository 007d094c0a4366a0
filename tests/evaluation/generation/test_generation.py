"""Samples of generation: greedy, the same prompts for all models, and where they part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.conversion import convert
from surgery.evaluation import EvaluationResult, evaluate
from surgery.loading import load_model, load_tokenizer

SUITE = {"name": "samples", "parts": [{"kind": "generation", "length": 24, "documents": 3, "tokens": 9}]}


@pytest.fixture(scope="module")
def other(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with attention so sharp or so flat that it says something else."""
    options = {"name": "ssmax", "form": "constant", "start": {"bias": 0.05}}
    return convert(trained, [options], output=tmp_path_factory.mktemp("models") / "flat").output


@pytest.fixture(scope="module")
def result(
    trained: Path, operated: Path, other: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> EvaluationResult:
    results = tmp_path_factory.mktemp("results")
    return evaluate([operated, other], against=trained, text=texts, suite=SUITE, results=results)


def added(result: EvaluationResult, number: int) -> list[Any]:
    (own,) = [one for one in result.section("generation").results if one.model == number]
    return list(own.continuations)


def test_the_likeliest_tokens_by_transformers_own_loop(
    result: EvaluationResult, trained: Path, other: Path, texts: Path
) -> None:
    tokenizer = load_tokenizer(trained)
    for number, folder in ((1, other), (2, trained)):
        model: Any = load_model(folder)
        for path, own in zip(sorted(texts.glob("*.txt"))[:3], added(result, number), strict=True):
            prompt = torch.tensor([tokenizer(path.read_text(), add_special_tokens=False)["input_ids"][:24]])
            found = model.generate(prompt, do_sample=False, max_new_tokens=9, eos_token_id=None)[0, 24:]
            assert own.text == tokenizer.decode(found) and own.tokens == 9


def test_they_part_where_the_tokens_part(result: EvaluationResult) -> None:
    base, same, flat = (added(result, number) for number in (2, 0, 1))
    assert [one.same for one in same] == [True] * 3 and [one.shared for one in same] == [9] * 3
    assert {one.same for one in base} == {None}
    assert not all(one.same for one in flat)
    for own, source in zip(flat, base, strict=True):
        words = list(zip(own.text.split(), source.text.split(), strict=True))
        expected = next((place for place, (one, two) in enumerate(words) if one != two), 9)
        assert own.shared == expected and source.text.startswith(own.shared_text)
    prompts = result.section("generation").prompts
    assert [prompt.tokens for prompt in prompts] == [24] * 3
    rows = [row for row in result.to_table().rows if "generated" in row[0]]
    assert [row[2] for row in rows] == [9.0, pytest.approx(sum(one.shared for one in flat) / 3)]
    assert all(not verdict.findings for verdict in result.verdicts), "samples are no part of the verdict"
    assert EvaluationResult.from_dict(result.to_dict()) == result


def test_a_text_ends_where_the_model_ends_it(trained: Path, texts: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    tokenizer = load_tokenizer(trained)
    first = added(evaluate(trained, text=texts, suite=SUITE, results=tmp_path / "a"), 0)[0].text.split()
    last = tokenizer.convert_tokens_to_ids(first[3])
    assert first[3] not in first[:3]

    def ends_early(*_: Any, **__: Any) -> Any:
        tokenizer.eos_token_id = last
        return tokenizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("surgery.evaluation.session.load_tokenizer", ends_early)
        found = evaluate(trained, text=texts, suite=SUITE, results=tmp_path / "b", on_event=events.append)
    own = added(found, 0)[0]
    assert own.text.split() == first[:4] and own.tokens == 4 and own.same is None
    counted = [event for event in events if event["event"] == "tokens"][-1]
    assert counted["done"] == counted["total"] == 3 * (24 + 9)


def test_logits_that_are_no_numbers_are_an_error(
    trained: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgery.errors import SurgeryError
    from surgery.evaluation.generation import measure

    def broken(*given: Any) -> Any:
        return None, torch.full((1, 63), float("nan"))

    monkeypatch.setattr(measure, "prefill", broken)
    with pytest.raises(SurgeryError, match="are not numbers"):
        evaluate(trained, text=texts, suite=SUITE, results=tmp_path)
