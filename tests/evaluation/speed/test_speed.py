"""Speed and memory: counts and bytes are right; no timing is asserted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from surgery.evaluation import evaluate
from surgery.evaluation.speed.stopwatch import interleaved, ratio
from surgery.evaluation.speed.workloads import memory
from surgery.loading import RunOptions
from tests.families import tiny_model


def test_ways_are_taken_in_turn() -> None:
    order: list[str] = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)
    assert order == ["b", "a", "a", "b", "b", "a"] and {name: len(own) for name, own in seconds.items()} == {
        "a": 2,
        "b": 2,
    }
    assert ratio({"a": [2.0, 3.0, 8.0], "b": [1.0, 1.0, 1.0]}, "a", "b") == 3.0


def test_bytes_of_weights_and_cache() -> None:
    model = tiny_model("llama")
    found = memory(model, 20)
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    assert found["cache"] == 2 * config.num_hidden_layers * config.num_key_value_heads * 20 * head_dim * 4
    parameters = sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())
    buffers = sum(buffer.numel() for buffer in model.buffers())
    assert found["weights"] == 4 * (parameters + buffers)
    if sys.platform == "linux":
        assert found["prefill"] is None or found["prefill"] >= 0


def test_a_model_and_its_base(trained: Path, operated: Path, tmp_path: Path) -> None:
    part = {"kind": "speed", "prefill": [16, 32], "decode_after": 16, "decode_tokens": 2, "repeats": 3}
    given = {"suite": {"name": "own", "parts": [part]}, "run": RunOptions(device="cpu"), "results": tmp_path}
    result = evaluate(operated, against=trained, **given)
    (own,) = result.section("speed").results
    assert [case.case for case in own.cases] == ["prefill 16", "prefill 32", "decode 2 after 16"]
    assert all(case.rate > 0 and case.base_rate > 0 and case.time_ratio > 0 for case in own.cases)
    assert [(use.model, use.tokens) for use in own.memory] == [(0, 32), (1, 32)]
    assert own.memory[0].weights == own.memory[1].weights + 2 * 4 * 4  # four scales in each of two layers
    assert evaluate(operated, against=trained, **given) == result  # taken from the folder: timings would differ
    assert result.verdicts[0].word == "undecided" and result.verdicts[0].findings == ()
    (alone,) = evaluate(trained, **given).section("speed").results
    assert alone.cases[0].base_rate is None and len(alone.memory) == 1


def test_a_speed_part_says_its_lengths() -> None:
    from surgery.evaluation import SuiteError, read_suite

    with pytest.raises(SuiteError):
        read_suite({"name": "own", "parts": [{"kind": "speed", "prefill": []}]})
