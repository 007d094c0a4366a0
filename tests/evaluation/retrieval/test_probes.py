"""Probes: ABCDigits against the paper's definition, and that what is asked for is there, once, at its depth."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.errors import UsageError
from surgery.evaluation.retrieval.probes import abcdigits, abcdigits_lines, induction, make_probe, needle, passkey
from tests.tokenizers import save_tiny_tokenizer

DEPTHS = st.floats(0, 1)
SEEDS = st.integers(0, 2**32)


@given(lines=st.integers(26, 400), depth=DEPTHS, seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_abcdigits_is_the_papers(lines: int, depth: float, seed: int) -> None:
    found, target, digits = abcdigits_lines(lines, depth, random.Random(seed))
    assert len(found) == lines and all(re.fullmatch(r"[A-Z]=[1-9]\d{5}", line) for line in found)
    numbers: dict[str, set[str]] = {}
    for line in found:
        letter, _, number = line.partition("=")
        numbers.setdefault(letter, set()).add(number)
    assert len(numbers) == 26  # each letter at least once
    assert all(len(own) == 1 for own in numbers.values())  # a letter has one number
    assert len({number for own in numbers.values() for number in own}) == 26  # and no other letter's
    places = [place for place, line in enumerate(found) if line.startswith(target)]
    assert places == [round(depth * (lines - 1))] and numbers[target] == {digits}
    prompt, answer = abcdigits(lines, depth, random.Random(seed))
    assert prompt == "\n".join([*found, f"{target}="]) and answer == digits


def test_abcdigits_draws_the_others_by_powers_of_two() -> None:
    counts = Counter(line[0] for line in abcdigits_lines(20_026, 0.5, random.Random(1))[0])
    common = [count for _, count in counts.most_common(5)]
    for place, count in enumerate(common):
        assert count / 20_000 == pytest.approx(2.0 ** -(place + 1), rel=0.15)
    assert len(counts) == 26 and sorted(counts.values())[:10] == [1] * 10


def test_abcdigits_needs_every_letter() -> None:
    with pytest.raises(ValueError, match="at least 26 lines, not 25"):
        abcdigits_lines(25, 0.5, random.Random(0))


@given(sentences=st.integers(1, 200), depth=DEPTHS, seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_hidden_facts_are_there(sentences: int, depth: float, seed: int) -> None:
    prompt, answer = passkey(sentences, depth, random.Random(seed))
    assert prompt.count(f"The pass key is {answer.strip()}. Remember") == 1 and prompt.endswith("The pass key is")
    prompt, answer = needle(max(3, sentences), depth, random.Random(seed), 3)
    codes = re.findall(r"The code of the ([a-z ]+) is (\d{5})\.", prompt)
    asked = prompt.rpartition("The code of the ")[2].removesuffix(" is")
    assert len(codes) == len({code for _, code in codes}) == len({place for place, _ in codes}) == 3
    assert dict(codes)[asked] == answer.strip()


def test_the_needle_stands_at_its_depth() -> None:
    for depth, least, most in ((0.0, 0.0, 0.02), (0.5, 0.45, 0.55), (1.0, 0.97, 1.0)):
        prompt, answer = needle(300, depth, random.Random(3), 3)
        place = prompt.index(f" is {answer.strip()}.") / prompt.index(" What is the code")
        assert least <= place <= most


@given(length=st.integers(33, 300), depth=DEPTHS, seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_copying_has_what_it_copies(length: int, depth: float, seed: int) -> None:
    probe = induction(length, depth, range(10, 10_000), [1], random.Random(seed))
    assert len(probe.prompt) + len(probe.answer) == length and probe.prompt[0] == 1
    cue, body = probe.prompt[-4:], probe.prompt[1:-4]
    start = round(depth * (len(body) - 16))
    assert body[start : start + 16] == cue + probe.answer


@pytest.mark.parametrize("task", ["abcdigits", "needle", "passkey", "induction"])
def test_lengths_are_in_tokens_and_nearly_filled(task: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tiny_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    given = {"tokenizer": tokenizer, "vocabulary": 97, "seed": "x"}
    probe = make_probe(task, 700, 0.5, **given)
    assert 700 - 80 <= len(probe.prompt) + len(probe.answer) <= 700
    assert make_probe(task, 700, 0.5, **given) == probe
    assert make_probe(task, 700, 0.5, **{**given, "seed": "y"}) != probe
    if probe.text is not None:
        assert tokenizer.decode(probe.answer).strip() == probe.text.strip()
    with pytest.raises(UsageError, match=f"task {task}.* needs at least"):
        make_probe(task, 20, 0.5, **given)
