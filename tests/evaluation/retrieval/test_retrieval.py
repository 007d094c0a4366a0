"""Retrieval: exact match is that of greedy decoding, and a model that copies does copy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from surgery.errors import UsageError
from surgery.evaluation import evaluate
from surgery.evaluation.measure import Subject, Unit
from surgery.evaluation.retrieval import RetrievalPart
from surgery.evaluation.retrieval.measure import RetrievalMeasure
from surgery.evaluation.retrieval.probes import Probe
from surgery.loading import RunOptions

CPU = RunOptions(device="cpu")
PART = RetrievalPart(kind="retrieval", task="passkey", lengths=[64], chunk=16)


def _suite(**part: Any) -> dict[str, Any]:
    return {"name": "own", "parts": [{"kind": "retrieval", "task": "induction", "samples": 6, **part}]}


def test_grids_and_scores_agree(trained: Path) -> None:
    result = evaluate(trained, suite=_suite(lengths=[34, 60], depths=[0.0, 1.0]), run=CPU)
    (own,) = result.section("retrieval").results
    assert [score.prompts for score in own.by_length] == [12, 12] and own.overall.prompts == 24
    assert len(own.right) == 2 and all(len(row) == 2 for row in own.right)
    for score, row, exact in zip(own.by_length, own.right, own.exact, strict=True):
        assert score.right.value == pytest.approx(sum(row) / 2) and score.exact.value == pytest.approx(sum(exact) / 2)
    mean = sum(score.right.value for score in own.by_length) / 2
    assert own.overall.right.value == pytest.approx(mean) and own.overall.right.low <= mean <= own.overall.right.high


def test_batches_change_nothing(trained: Path) -> None:
    one = evaluate(trained, suite=_suite(lengths=[40]), run=CPU).section("retrieval")
    many = evaluate(trained, suite=_suite(lengths=[40]), run=RunOptions(device="cpu", batch_size=7)).section(
        "retrieval"
    )
    assert many.results[0].exact == one.results[0].exact
    assert many.results[0].overall.loss.value == pytest.approx(one.results[0].overall.loss.value, abs=1e-5)


def test_exact_is_what_greedy_decoding_gives(trained: Path) -> None:
    """On prompts that the model can and cannot complete: its own continuations, and others."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    probes = []
    for seed in range(6):
        cycle = torch.randint(3, 63, (6,), generator=torch.Generator().manual_seed(seed))
        prompt = cycle.repeat(4)[None]
        continued = model.generate(prompt, max_new_tokens=5, do_sample=False, eos_token_id=-1)[0, 24:]
        answer = continued.clone()
        if seed % 2:
            answer[3] = (answer[3] + 1) % 60 + 3
        probes.append(
            (Probe(tuple(prompt[0].tolist()), tuple(answer.tolist()), None), bool((continued == answer).all()))
        )
    subject = Subject("tiny", model, tokenizer)
    units = [Unit(str(number), 29, 0, (29, 0.0, probe)) for number, (probe, _) in enumerate(probes)]
    found = RetrievalMeasure(PART).run(subject, units, lambda count: None)
    assert [bool(row["exact"]) for row in found] == [same for _, same in probes] == [True, False] * 3
    assert [row["right"] for row in found[::2]] == [1.0] * 3 and all(row["right"] < 1 for row in found[1::2])
    with torch.no_grad():
        whole = torch.tensor([probes[1][0].prompt + probes[1][0].answer])
        logits = model(input_ids=whole).logits[0, 23:-1]
    loss = torch.nn.functional.cross_entropy(logits, whole[0, 24:])
    assert found[1]["loss"] == pytest.approx(loss.item(), abs=1e-5)


class _Digits:
    """A tokenizer where 0 to 9 are digits and 10 + d is the pair of digits d0."""

    def decode(self, tokens: list[int]) -> str:
        return "".join(str(token) if token < 10 else f"{token - 10}0" for token in tokens)


def test_the_same_text_in_other_tokens_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is "120", as tokens 1 2 0; a model that writes 1 and then the pair "20" has it right."""

    def prefill(model: Any, tokens: torch.Tensor, chunk: int) -> tuple[None, torch.Tensor]:
        return None, torch.nn.functional.one_hot(torch.tensor([3]), 20).float()  # it always goes on with 3

    monkeypatch.setattr("surgery.evaluation.retrieval.measure.prefill", prefill)
    subject = Subject("x", SimpleNamespace(device="cpu"), _Digits())  # type: ignore[arg-type]
    measure = RetrievalMeasure(PART)
    assert measure._other_tokens(subject, Probe((5,), (1, 2, 0), "120"), [1, 12, 9], 1)
    assert not measure._other_tokens(subject, Probe((5,), (1, 2, 0), "120"), [1, 7, 9], 1)
    assert measure._other_tokens(subject, Probe((5,), (12, 3), "203"), [2, 0], 0) is False  # 2, then 3
    assert measure._other_tokens(subject, Probe((5,), (2, 0, 3), "203"), [12, 0, 3], 0)  # 20, then 3


def test_too_short_a_length_says_what_it_needs(trained: Path) -> None:
    with pytest.raises(UsageError, match="task induction: copying needs at least 32 tokens, not 20"):
        evaluate(trained, suite=_suite(lengths=[20]), run=CPU)
