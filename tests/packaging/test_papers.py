"""The reproductions of the papers run from start to end at the smallest size, and a second run repeats no work."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import surgery
from bench.papers import digits, free_multiplier, learning_rates, loss_by_position, pairs, retrieval, runs
from tests.tokenizers import write_texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder, documents=20, words=700)
    return folder


def no_work(*_: Any, **__: Any) -> None:
    raise AssertionError("a finished unit was worked out again")


def test_retrieval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--state", str(tmp_path), "--scale", "toy", "--seeds", "1", "--device", "cpu", "--models", "during"]
    rows = retrieval.main([*given, "--picture", str(tmp_path / "picture.png")])
    assert {(row["model"], row["theta"], row["times"]) for row in rows} == {
        ("during", theta, times) for theta in (1, 50) for times in (1, 2, 4, 8, 16)
    }
    assert all(0 <= row["least"] <= row["mean"] <= row["greatest"] <= 1 and row["seeds"] == 1 for row in rows)
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    monkeypatch.setattr(retrieval, "measure", no_work)
    assert retrieval.main(given) == rows


def test_the_spread_over_seeds() -> None:
    units = {"softmax": [[{"theta": 1, "times": 2, "right": right}] for right in (0.25, 1.0, 0.25)]}
    (row,) = retrieval.rows_of(units)
    assert (row["mean"], row["least"], row["greatest"], row["seeds"]) == (0.5, 0.25, 1.0, 3)


def test_a_row_of_recall_can_be_answered() -> None:
    """Each answer is the value of the one fact of the row with the key that stands before it."""
    tokens, answers = retrieval.recall_row(40, random.Random(0))
    assert len(tokens) == len(answers) == 40 and sum(answers) == 4 and max(tokens) < retrieval.VOCABULARY
    facts = [divmod(token - 24, 8) for token in tokens if 24 <= token < 24 + 16 * 8]
    assert len(facts) == 4 == len(dict(facts))
    for place in (number for number, flag in enumerate(answers) if flag):
        assert tokens[place] - 16 == dict(facts)[tokens[place - 1]]


def test_a_new_model_is_drawn_wider(tmp_path: Path) -> None:
    """Every matrix but the embedding has the variance 1 / inputs."""
    model = runs.load(surgery.new("softmax", tmp_path / "new", vocab_size=64, layers=2, heads=2, width=128).output)
    before = model.get_input_embeddings().weight.clone()
    runs.draw_wider(model)
    assert torch.equal(before, model.get_input_embeddings().weight)
    for name, weight in model.model.layers.named_parameters():
        if weight.dim() == 2:
            assert float(weight.detach().std()) == pytest.approx(weight.shape[1] ** -0.5, rel=0.03), name


def test_the_free_multiplier(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [str(texts), "--state", str(tmp_path), "--scale", "toy", "--seeds", "1", "--device", "cpu"]
    rows = free_multiplier.main(given)
    p = free_multiplier.kept(tmp_path / "free-toy-32-4-6" / "0" / "p.json", no_work)
    assert len(p) == 31 and all(value != 1.0 for value in p[1:])
    monkeypatch.setattr(free_multiplier, "learned", no_work)
    assert free_multiplier.main(given) == rows


def test_the_fit_finds_the_logarithm() -> None:
    p = [0.3 * math.log(n) + 0.2 for n in range(1, 65)]
    assert free_multiplier.fitted(p, "ln n") == pytest.approx({"a1": 0.3, "a2": 0.2, "R2": 1.0})
    assert free_multiplier.fitted(p, "n")["R2"] < 0.9


def test_loss_by_position(texts: Path, tmp_path: Path) -> None:
    given = [str(texts), "--state", str(tmp_path), "--scale", "toy", "--seeds", "1", "--models", "fixed", "after"]
    rows = loss_by_position.main(given)
    assert len(rows) == 2 * 2 * 5 and all(0 < row["mean"] < 20 for row in rows)


def test_learning_rates(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [str(texts), "--state", str(tmp_path), "--scale", "toy", "--seeds", "1", "--exponents", "-4", "9"]
    rows = learning_rates.main([*given, "--picture", str(tmp_path / "picture.png")])
    assert [(row["model"], row["rate"]) for row in rows] == [
        (name, rate) for rate in ("2^-4", "2^9") for name in ("multiscreen", "softmax")
    ]
    assert all(row["diverged"] == (row["mean"] is None) for row in rows)
    assert (
        not any("after" in key for key in rows[0])
        and rows[0]["mean"] < 8
        and (tmp_path / "picture.png").stat().st_size > 10_000
    )
    monkeypatch.setattr(learning_rates, "measure", no_work)
    assert learning_rates.main(given) == rows


def test_the_loss_during_a_training(texts: Path, tmp_path: Path) -> None:
    """The last measurement is that of the trained model, and the chosen models alone are trained."""
    given = [str(texts), "--state", str(tmp_path), "--scale", "toy", "--seeds", "2", "--exponents", "-4"]
    (row,) = learning_rates.main([*given, "--models", "ssmax", "--every", "4"])
    assert row["model"] == "ssmax"
    assert row["after 512 tokens"] > row["after 768 tokens"] == pytest.approx(row["mean"], rel=1e-5)


def test_the_twin_has_as_many_parameters() -> None:
    scale = learning_rates.scale_of(learning_rates.arguments("").parse_args(["--state", ".", "--scale", "cpu"]))[0]
    own, other = (pairs.parameters_of(name, scale, 2048) for name in pairs.NAMES)
    assert own == 2048 * 64 + 224 * 8**4 + 3 * 8**2 + 2 and abs(other - own) < 0.01 * own


@pytest.mark.parametrize("name", ["nope", "ssmax-nope"])
def test_a_model_without_positions_sees_a_set(tmp_path: Path, name: str) -> None:
    """The order of the tokens before the last one is without effect in one layer, and has an effect with RoPE."""
    ids = torch.arange(12)[None]
    changed = torch.cat((ids[:, :-1].flip(1), ids[:, -1:]), dim=1)
    start = surgery.new(pairs.KINDS[name].architecture, tmp_path / "new", vocab_size=64, layers=1, heads=2, width=32)
    model = runs.load(start.output).eval()
    runs.draw_wider(model)

    def last(tokens: torch.Tensor) -> torch.Tensor:
        return model(tokens, logits_to_keep=1).logits.detach()

    assert not torch.allclose(last(ids), last(changed), atol=1e-4)
    runs.remove_positions(model)
    assert torch.allclose(last(ids), last(changed), atol=1e-5)


def test_a_pair_trains_what_its_name_says(tmp_path: Path) -> None:
    """Every kind has as many parameters, and only the kinds with positions turn."""
    scale = digits.scale_of(digits.arguments("").parse_args(["--state", ".", "--scale", "toy", "--length", "48"]))[0]
    rows = digits.training_rows(scale, 0)
    vocabulary = digits.Shape.of(scale.length).vocabulary
    counts = {name: pairs.parameters_of(name, scale, vocabulary) for name in pairs.KINDS}
    assert max(counts.values()) - min(counts.values()) < 0.1 * counts["multiscreen"]
    for name in ("softmax", "ssmax", "nope", "ssmax-nope"):
        model = pairs.trained(name, scale, rows, vocabulary, tmp_path / name, lr=1e-3, seed=0, device="cpu").model
        assert sum(parameter.numel() for parameter in model.parameters()) == counts[name]
        assert bool(model.model.rotary_emb.inv_freq.any()) == pairs.KINDS[name].positions
        scales = [key for key, _ in model.named_parameters() if "ssmax" in key.lower()]
        assert bool(scales) == name.startswith("ssmax")


SHAPES = [digits.Shape(26, 6), digits.Shape(8, 1)]


def lines_of(tokens: list[int], shape: digits.Shape, asked: int) -> list[tuple[int, ...]]:
    """The lines of a text of ABCDigits as a letter and its digits; the last ones are asked for."""
    end = len(tokens) - asked * (shape.digits + 1)
    lines: list[tuple[int, ...]] = [divmod(token - 10 - shape.letters, 10) for token in tokens[:end]]
    if shape.digits > 1:
        lines = [(tokens[at] - 10, *tokens[at + 1 : at + 1 + shape.digits]) for at in range(0, end, 1 + shape.digits)]
    for at in range(end, len(tokens), shape.digits + 1):
        first, *rest = tokens[at : at + shape.digits + 1]
        lines.append((first - 10, *rest))
    assert all(0 <= letter < shape.letters and 0 <= min(rest) <= max(rest) < 10 for letter, *rest in lines)
    assert max(tokens) < shape.vocabulary
    return lines


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_row_of_digits_can_be_answered(depth: float, shape: digits.Shape) -> None:
    """The target stands once, at its depth, before the last line; the digits of a letter are always the same."""
    tokens = digits.target_row(512, shape, depth, random.Random(0))
    lines = lines_of(tokens, shape, 1)
    assert 505 < len(tokens) <= 512
    places = [number for number, line in enumerate(lines) if line == lines[-1]]
    assert places == [round(depth * (len(lines) - 2)), len(lines) - 1]
    assert len({line[0] for line in lines}) == shape.letters == len(set(lines))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_of_the_training_asks_for_what_it_says(shape: digits.Shape) -> None:
    draw = random.Random(0)
    known = set()
    for _ in range(200):
        tokens, answers = digits.training_row(512, shape, draw)
        asked = sum(answers) // shape.digits
        question = [False, *[True] * shape.digits]
        assert len(answers) == len(tokens) <= 512
        assert answers == [False] * (len(tokens) - asked * len(question)) + question * asked
        lines = lines_of(tokens, shape, asked)
        letters = {line[0] for line in lines}
        assert asked == min(8, len(letters)) == len(set(lines[-asked:])) and {*lines[-asked:]} <= {*lines[:-asked]}
        assert len(set(lines)) == len(letters)
        known.add(len(letters))
    assert known == set(range(2, shape.letters + 1))


def test_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--state", str(tmp_path), "--scale", "toy", "--length", "48", "--seeds", "1", "--device", "cpu"]
    rows = digits.main([*given, "--picture", str(tmp_path / "picture.png")])
    assert [(row["model"], row["theta"], row["times"]) for row in rows] == [
        (name, theta, times)
        for name, theta in (
            *(("multiscreen", 1), ("multiscreen", 1), ("softmax", 1), ("softmax", 50)),
            *(("ssmax", 1), ("ssmax", 50), ("nope", 1), ("ssmax-nope", 1)),
        )
        for times in digits.TIMES
    ]
    assert all(0 <= row["mean"] <= 1 for row in rows) and (tmp_path / "picture.png").stat().st_size > 10_000
    monkeypatch.setattr(digits, "measure", no_work)
    assert digits.main(given) == rows
    windows = [row["windows"] for row in rows if row["model"] == "multiscreen"]
    assert windows == 5 * ["infinite"] + 5 * ["as learned"]
    assert digits.main([*given, "--models", "softmax"]) == [row for row in rows if row["model"] == "softmax"]


def test_an_answer_counts_if_all_digits_are_right() -> None:
    """A model that knows the answers is always right, one that errs in the last digit never."""
    scale = digits.scale_of(digits.arguments("").parse_args(["--state", ".", "--scale", "toy", "--length", "48"]))[0]

    class Knowing:
        device = "cpu"
        wrong = 0

        def __call__(self, ids: Any, logits_to_keep: int) -> Any:
            following = torch.cat((ids[:, 1:], ids[:, -1:]), dim=1)[:, -logits_to_keep:].clone()
            following[:, -2] += self.wrong
            return SimpleNamespace(logits=torch.nn.functional.one_hot(following, 64).float())

    model = Knowing()
    assert digits.accuracy(model, 96, scale, 0) == 1.0
    model.wrong = 1
    assert digits.accuracy(model, 96, scale, 0) == 0.0
