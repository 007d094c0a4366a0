"""Buckets, paired intervals and verdicts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import UsageError
from surgery.evaluation.loss.buckets import check_edges, default_edges
from surgery.evaluation.loss.sample import Sample, conclude
from surgery.evaluation.results import Estimate, Finding
from surgery.evaluation.statistics import Resampling, change_in_words, combine, judge

MARGIN = 0.005


def _losses(count: int, length: int, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.gamma(2.0, size=length - 1) for _ in range(count)]


def test_edges() -> None:
    assert default_edges(4096) == (64, 128, 256, 512, 1024, 2048, 4095)
    assert default_edges(40) == (39,)
    assert check_edges([4, 16, 500], 33) == (4, 16, 32)
    for wrong in ([], [0, 4], [8, 8], [16, 4]):
        with pytest.raises(UsageError, match="positive and rising"):
            check_edges(wrong, 64)


def test_buckets_partition_the_tokens() -> None:
    losses = [*_losses(3, 100), *_losses(2, 40)]
    sample = Sample(losses, None)
    edges = (1, 8, 64, 99)
    buckets = [sample.bucket(first, last, MARGIN) for first, last in zip((1, 2, 9, 65), edges, strict=True)]
    overall = sample.bucket(1, 99, MARGIN)
    assert all(bucket is not None for bucket in buckets) and overall is not None
    assert sum(bucket.tokens for bucket in buckets) == overall.tokens == 3 * 99 + 2 * 39
    weighted = sum(bucket.loss.value * bucket.tokens for bucket in buckets) / overall.tokens
    assert weighted == pytest.approx(overall.loss.value, abs=1e-12)
    assert [bucket.sequences for bucket in buckets] == [5, 5, 5, 3]
    assert sample.bucket(100, 200, MARGIN) is None


def test_the_curve_covers_each_token_once() -> None:
    sample = Sample(_losses(3, 300), _losses(3, 300, seed=1))
    points = sample.curve(300)
    assert sum(point.tokens for point in points) == 3 * 299
    assert points[0].first == 1 and points[-1].last == 299
    assert all(left.last + 1 == right.first for left, right in pairwise(points))


def test_pairing_makes_the_interval_narrow() -> None:
    base = _losses(12, 200)
    model = [loss + 0.02 for loss in base]
    bucket = Sample(model, base).bucket(1, 199, MARGIN)
    assert bucket is not None and bucket.difference is not None and bucket.loss.low is not None
    assert bucket.difference.value == pytest.approx(0.02)
    assert bucket.difference.high - bucket.difference.low < 1e-9 < bucket.loss.high - bucket.loss.low
    assert bucket.verdict == "lost"


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        shifts = draw.normal(0.1, 0.05, size=20)
        base = [np.ones(5) for _ in shifts]
        bucket = Sample([one + shift for one, shift in zip(base, shifts, strict=True)], base).bucket(1, 5, MARGIN)
        covered += bucket.difference.low <= 0.1 <= bucket.difference.high
    assert 0.87 <= covered / 200 <= 0.99


def test_equal_losses_differ_by_exactly_nothing() -> None:
    losses = _losses(5, 100)
    sample = Sample(losses, [loss.copy() for loss in losses])
    overall = sample.bucket(1, 99, MARGIN)
    assert overall.difference == Estimate(0.0, 0.0, 0.0) and overall.verdict == "no difference"
    verdict = conclude("loss", overall, [overall], MARGIN)
    assert verdict.word == "no difference" and "exactly the same" in verdict.sentence


def test_rounding_does_not_decide() -> None:
    """In twelfths the lower end is zero; as sums of floats it is 1.4e-17."""
    sums = np.array([4, 5, 5, 1, 3, 5, -4, -1]) / 12
    found = Resampling(range(8)).mean(sums, np.ones(8))
    assert found.low == 0 and judge(found, 0.01, more_is_better=True) == "undecided"


def test_what_rounds_to_zero_has_no_sign() -> None:
    assert change_in_words(Estimate(-1e-5, -2e-5, 1e-5)) == "+0.0000 (95% interval +0.0000 to +0.0000)"


def test_differences_that_cancel_are_not_no_difference() -> None:
    base = [np.ones(4)] * 8
    model = [np.array([1.5, 0.5, 1.0, 1.0])] * 8
    assert Sample(model, base).bucket(1, 4, MARGIN).verdict == "kept"


@pytest.mark.parametrize("documents", [4, 8])
def test_a_gain_needs_enough_documents_and_a_loss_does_not(documents: int) -> None:
    base = _losses(documents, 50)
    better = Sample([losses - 0.1 for losses in base], base).bucket(1, 49, MARGIN)
    said = conclude("loss", better, [better], MARGIN).sentence
    assert better.verdict == ("gained" if documents == 8 else "undecided")
    assert ("gained on 4 documents, not enough to say" in said) is (documents == 4)
    assert Sample([losses + 0.1 for losses in base], base).bucket(1, 49, MARGIN).verdict == "lost"


@pytest.mark.parametrize("documents", [4, 8])
def test_kept_needs_enough_documents_too(documents: int) -> None:
    base = _losses(documents, 50)
    same = Sample([losses + 1e-4 for losses in base], base).bucket(1, 49, MARGIN)
    said = conclude("loss", same, [same], MARGIN).sentence
    assert same.verdict == ("kept" if documents == 8 else "undecided")
    assert ("kept on 4 documents, not enough to say; measure 8 or more" in said) is (documents == 4)


def test_one_sequence_decides_nothing() -> None:
    base = _losses(1, 50)
    overall = Sample([base[0] + 1.0], base).bucket(1, 49, MARGIN)
    assert overall.difference.low is None and overall.verdict == "undecided"
    assert "one document gives no interval" in conclude("loss", overall, [overall], MARGIN).sentence


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.001, 0.002, "kept"),
        (0.001, 0.004, "kept"),
        (0.001, 0.006, "lost"),
        (0.01, 0.02, "lost"),
        (-0.02, -0.01, "gained"),
        (-0.006, -0.001, "gained"),
        (-0.01, 0.001, "undecided"),
        (-0.5, 0.5, "undecided"),
    ],
)
def test_verdicts(low: float, high: float, word: str) -> None:
    assert judge(Estimate((low + high) / 2, low, high), MARGIN) == word


@given(
    value=st.floats(-10, 10),
    below=st.floats(0, 1),
    above=st.floats(0, 1),
)
def test_a_verdict_mirrors_when_the_models_change_places(value: float, below: float, above: float) -> None:
    mirror = {"lost": "gained", "gained": "lost", "kept": "kept", "undecided": "undecided"}
    forward = judge(Estimate(value, value - below, value + above), MARGIN)
    backward = judge(Estimate(-value, -(value + above), -(value - below)), MARGIN)
    assert mirror[forward] == backward


def test_a_bucket_that_lost_is_named_though_the_whole_was_kept() -> None:
    base = [np.ones(199) + 0.001 * seed for seed in range(8)]
    model = [np.concatenate([loss[:190], loss[190:] + 0.02]) for loss in base]
    sample = Sample(model, base)
    buckets = [sample.bucket(1, 190, MARGIN), sample.bucket(191, 199, MARGIN)]
    verdict = conclude("loss", sample.bucket(1, 199, MARGIN), buckets, MARGIN)
    assert verdict.word == "kept" and "It lost with 191 to 199 tokens seen." in verdict.sentence


def test_sequences_of_one_document_are_drawn_together() -> None:
    """Cutting documents into more pieces tells nothing new, so it must not make the interval narrower."""
    shifts = np.random.default_rng(3).normal(0.1, 0.05, size=8)
    base = [np.ones(40) for _ in shifts]
    model = [one + shift for one, shift in zip(base, shifts, strict=True)]
    whole = Sample(model, base).bucket(1, 40, MARGIN)
    pieces = [part for loss in model for part in np.split(loss, 4)]
    same = [part for loss in base for part in np.split(loss, 4)]
    documents = [document for document in range(8) for _ in range(4)]
    grouped = Sample(pieces, same, documents).bucket(1, 10, MARGIN)
    alone = Sample(pieces, same).bucket(1, 10, MARGIN)
    assert grouped.difference.low == pytest.approx(whole.difference.low, abs=1e-12)
    assert grouped.documents == 8 and grouped.sequences == 32
    assert alone.difference.high - alone.difference.low < 0.7 * (grouped.difference.high - grouped.difference.low)
    one = Sample(pieces[:4], same[:4], documents[:4]).bucket(1, 10, MARGIN)
    assert one.difference.low is None and one.verdict == "undecided"


def test_more_can_be_better() -> None:
    assert judge(Estimate(-0.2, -0.3, -0.1), MARGIN, more_is_better=True) == "lost"
    assert judge(Estimate(0.2, 0.1, 0.3), MARGIN, more_is_better=True) == "gained"


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["no difference", "no difference"], "no difference"),
        (["kept", "no difference"], "kept"),
        (["kept", "undecided"], "undecided"),
        (["kept", "lost", "undecided"], "lost"),
        (["gained", "kept"], "gained"),
        (["gained", "lost"], "mixed"),
        ([], "undecided"),
    ],
)
def test_one_word_over_all_findings(words: list[str], word: str) -> None:
    assert combine(0, [Finding("x", one, "") for one in words]).word == word
