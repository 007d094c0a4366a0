"""Recall data: haystacks for training, and that nothing of measuring is in them."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from surgery.data import Row, SourceReader
from surgery.data.recall import MEASURING, TRAINING, FactFamily, draw_facts, draw_haystack, encode_haystack, most_facts
from surgery.errors import UsageError
from surgery.evaluation.retrieval.probes import abcdigits, needle, passkey
from surgery.training.dataset import TrainingData, read_data
from surgery.training.text_options import Data

TEXT = "\n\n".join(f"Paragraph {number} speaks of rivers.\nIts second line is about mills." for number in range(300))


def _characters(text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """A tokenizer with one token for each character."""
    return [ord(letter) for letter in text], [(place, place + 1) for place in range(len(text))]


def _pairs(text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """A tokenizer with one token for two letters of a word, which joins what a cut would part."""
    places = [match.span() for match in re.finditer(r"\w\w|[\s\S]", text)]
    return [hash(text[first:last]) for first, last in places], places


def _words(family: FactFamily) -> set[str]:
    words = {word.lower() for part in (*family.parts, family.words) for word in part}
    return words | {
        word.lower() for line in (*family.lines, family.question) for word in re.findall(r"[A-Za-z]{4,}", line)
    }


def _skeletons(family: FactFamily) -> set[str]:
    """Templates without names, values and white space."""
    return {re.sub(r"\{\w+\}|\s", "", template) for template in (*family.lines, family.question)}


@pytest.mark.parametrize("measured", sorted(MEASURING))
def test_nothing_of_measuring_is_in_training(measured: str) -> None:
    family = MEASURING[measured]
    for name, own in TRAINING.items():
        shared = _words(own) & _words(family)
        assert shared <= {"name", "other", "value", "with", "this"}, f"{name} and {measured} share {shared}"
        assert not _skeletons(own) & _skeletons(family)
        assert not set(itertools.chain(*own.parts, own.words)) & set(itertools.chain(*family.parts, family.words))


def test_nothing_of_the_other_probes_is_in_training() -> None:
    """ABCDigits, passkey and needle are measured too."""
    draw = random.Random(0)
    probes = [abcdigits(30, 0.5, draw), passkey(20, 0.5, draw), needle(20, 0.5, draw, 3)]
    text = "\n".join(prompt + answer for prompt, answer in probes)
    for family in TRAINING.values():
        for template in (*family.lines, family.question):
            pattern = re.sub(r"\\\{\w+\\\}", r"[\\w ]+", re.escape(template.replace("{{", "{").replace("}}", "}")))
            assert not re.search(pattern, text), template
    # The same test finds a template that is there.
    assert re.search(r"The code of the [\w ]+ is [\w ]+\.", text)


@pytest.mark.parametrize("families", [TRAINING, MEASURING])
def test_facts_have_names_and_values_of_their_own(families: dict[str, FactFamily]) -> None:
    for name, family in families.items():
        facts = draw_facts({name: family}, min(20, most_facts({name: family})), random.Random(3))
        questions = [fact.question for fact in facts]
        assert len(set(questions)) == len(questions) and len({fact.answer for fact in facts}) == len(facts)
        for fact in facts:
            assert fact.answer in fact.lines[-1] and "{" not in fact.lines[0].replace('{"', "")


@pytest.mark.parametrize("offsets", [_characters, _pairs])
@pytest.mark.parametrize("seed", range(6))
def test_a_haystack_asks_for_what_it_holds_and_counts_answers_alone(offsets: Any, seed: int) -> None:
    haystack = draw_haystack(TEXT, TRAINING, (900, 4000), (2, 12), random.Random(seed))
    assert 900 <= haystack.length <= 4000 and 2 <= len(haystack.facts) <= 12
    ids, answers = encode_haystack(haystack, offsets)
    assert haystack.length - 120 < len(ids) <= haystack.length and len(ids) == len(answers)
    if offsets is _characters:
        whole = "".join(map(chr, ids))
        marked = "".join(letter if own else "\0" for letter, own in zip(whole, answers, strict=True))
        wanted = [haystack.facts[number].answer for number in haystack.order]
        assert [part for part in marked.split("\0") if part] == wanted
        text, _, questions = whole.rpartition("\n\n")
        for fact in haystack.facts:
            assert all(text.count(line) == 1 for line in fact.lines)
            assert fact.question + fact.space + fact.answer in questions
        # The text is the user's, in its order.
        rest = [line for line in text.split("\n") if "Paragraph" in line]
        numbers = [int(line.split()[1]) for line in rest]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_depths_and_lengths_spread_over_their_ranges() -> None:
    drawn = [draw_haystack(TEXT, TRAINING, (500, 4000), (4, 12), random.Random(seed)) for seed in range(300)]
    depths = [depth for haystack in drawn for own in haystack.depths for depth in own]
    assert min(depths) < 0.02 and max(depths) > 0.98
    short = sum(haystack.length < 1414 for haystack in drawn)  # the geometric mean
    assert 110 < short < 190
    assert any(list(haystack.order) != sorted(haystack.order) for haystack in drawn)
    seen = {fact.family for haystack in drawn for fact in haystack.facts}
    assert seen == set(TRAINING)


def test_a_short_text_gives_a_short_haystack() -> None:
    haystack = draw_haystack("One line.\n\nAnother line.", TRAINING, (2000, 2000), (3, 3), random.Random(0))
    ids, answers = encode_haystack(haystack, _characters)
    assert len(ids) < 1000 and any(answers)


def test_facts_without_room_are_left_out() -> None:
    """A tokenizer of characters needs more tokens for a fact than a draw allows for."""
    haystack = draw_haystack(TEXT, TRAINING, (260, 260), (3, 3), random.Random(1))
    ids, answers = encode_haystack(haystack, _characters)
    whole = "".join(map(chr, ids))
    assert len(ids) <= 260 and any(answers)
    asked = [fact for fact in haystack.facts if fact.question + fact.space + fact.answer in whole]
    assert 0 < len(asked) < 3 and all(line in whole for fact in asked for line in fact.lines)
    with pytest.raises(UsageError, match=r"a fact and its question take \d+ tokens, and the haystack may have 20"):
        encode_haystack(replace(haystack, length=20), _characters)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"Text {number}.\n\n{TEXT}")
    return folder


def _source(texts: Path, **options: Any) -> dict[str, Any]:
    return {"kind": "recall", "path": str(texts), "lengths": [500, 900], "facts": [2, 4], "haystacks": 3, **options}


def _read(data: dict[str, Any], *, seed: int = 0) -> TrainingData:
    options = Data.model_validate({"sequence_length": 900, "packing": False, **data})
    return read_data(options, lambda texts: [_characters(text)[0] for text in texts], None, _characters, seed=seed)


def test_a_source_continues_from_any_position(texts: Path) -> None:
    options = Data.model_validate({"sequence_length": 900, "sources": [_source(texts)]})
    reader = SourceReader(options.sources[0], 0, "data.sources.0", stream=False)
    whole = list(reader.documents())
    assert len(whole) == 18 and len({document.haystack for document, _ in whole}) == 18
    for place in (0, 3, 10):
        rest = [document for document, _ in reader.documents(whole[place][1])]
        assert rest == [document for document, _ in whole[place + 1 :]]
    other = SourceReader(
        Data.model_validate({"sequence_length": 900, "sources": [_source(texts, seed=1)]}).sources[0],
        0,
        "",
        stream=False,
    )
    assert [document for document, _ in other.documents()] != [document for document, _ in whole]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_answers_mixed_with_text(texts: Path, streaming: bool) -> None:
    text = {"kind": "text", "path": str(texts), "weight": 0.5}
    data = {"sources": [_source(texts), text], "held_out": 0.2, "streaming": streaming}
    found, again = _read(data), _read(data)
    assert found.fingerprint == again.fingerprint
    rows = [row for source in found.rows(900) for row in source]
    recall = [row for row in rows if row.predicted]
    assert recall and len(recall) < len(rows)
    assert all(5 < row.targets < 60 for row in recall) and all(row.tokens <= 900 for row in rows)
    # A document is held out with its haystacks, and its text is in no row of training.
    first = {"".join(map(chr, row.documents[0])) for row in rows}
    held = {name for name in map(str, range(6)) for row in found.held_out if f"Text {name}." in _text(row)}
    assert not any(f"Text {name}." in own for name in held for own in first)
    if streaming:
        assert found.stream is not None
        one = found.stream(900, 0, None)
        wanted = [one[number] for number in range(200)]
        resumed = found.stream(900, 0, one.snapshot(150))
        assert [resumed[number] for number in range(150, 200)] == wanted[150:]


def _text(row: Row) -> str:
    return "".join(map(chr, row.documents[0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": [900, 500]}, "the least, 900, is above the greatest, 500"),
        ({"lengths": [500, 901]}, "haystacks of 901 tokens do not fit into sequences of 900"),
        ({"families": ["vault"]}, "Input should be 'sentence'"),
        ({"facts": [0, 3]}, "greater than 0"),
    ],
)
def test_what_cannot_be_made_is_refused(texts: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Data.model_validate({"sequence_length": 900, "sources": [_source(texts, **changes)]})
