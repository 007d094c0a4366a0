"""Bootstrap intervals of means, and what a difference with its interval says."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from surgery.evaluation.estimates import Estimate, Finding, Interval, Verdict, Word

INTERVAL = Interval(method="percentile bootstrap over documents", level=0.95, samples=2000, seed=0)


# An interval from fewer groups is too narrow: it excludes zero by chance more often than its level says.
FEWEST_FOR_CLAIM = 8


class Resampling:
    """Means with intervals that resample whole groups, since the items of one document are not independent.

    Args:
        groups: the group of each item; items of one group are drawn together.
        interval: level, number of resamples and seed.
    """

    def __init__(self, groups: Sequence[Hashable], interval: Interval = INTERVAL) -> None:
        self.interval = interval
        places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
        self._groups = np.array([places[group] for group in groups])
        self.size = len(places)
        draws = np.random.default_rng(interval.seed).multinomial(
            self.size, [1 / self.size] * self.size, size=interval.samples
        )
        self._weights = draws.astype(np.float64)  # (samples, groups): how often each group was drawn

    def by_group(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over the items of each group."""
        return np.bincount(self._groups, weights=values, minlength=self.size).astype(np.float64)

    def mean(self, sums: NDArray[np.float64], counts: NDArray[np.float64]) -> Estimate:
        """Sum of ``sums`` over sum of ``counts``, both per item; no interval if fewer than two groups have a count."""
        value = float(sums.sum() / counts.sum())
        # Smaller values are rounding errors of a zero sum; they must not decide that an interval excludes zero.
        noise = 1e-12 * float(np.abs(sums).sum() / counts.sum())
        sums, counts = self.by_group(sums), self.by_group(counts)
        if (counts > 0).sum() < 2:
            return Estimate(value, None, None)
        weighted = self._weights @ counts
        drawn = weighted > 0
        means = (self._weights @ sums)[drawn] / weighted[drawn]
        tail = (1 - self.interval.level) / 2
        low, high = np.quantile(means, [tail, 1 - tail])
        low, high = (0.0 if abs(bound) <= noise else float(bound) for bound in (low, high))
        # Rounding may put the mean of equal numbers slightly outside their interval.
        return Estimate(value, min(low, value), max(high, value))


def judge(difference: Estimate, margin: float, *, more_is_better: bool = False, groups: int | None = None) -> Word:
    """Kept if the interval lies within the margin, lost or gained if it excludes zero, else undecided.

    Args:
        difference: model minus base.
        margin: a change that counts as kept.
        more_is_better: whether a rise is a gain.
        groups: documents that the interval resamples; with fewer than `FEWEST_FOR_CLAIM` nothing is gained or kept. A
            loss needs no such number, so that a warning is not kept back.
    """
    if difference.low is None or difference.high is None:
        return "undecided"
    few = groups is not None and groups < FEWEST_FOR_CLAIM
    if -margin <= difference.low and difference.high <= margin:
        return "undecided" if few else "kept"
    if difference.low <= 0 <= difference.high:
        return "undecided"
    if (difference.low > 0) is not more_is_better:
        return "lost"
    return "undecided" if few else "gained"


def why_undecided(difference: Estimate, groups: int, noun: str, margin: float) -> str:
    """Why a difference with an interval is undecided: the interval includes zero, or it is of too few groups."""
    low, high = difference.low, difference.high
    if low is not None and high is not None and -margin <= low and high <= margin:
        return f"kept on {groups} {noun}s, not enough to say; measure {FEWEST_FOR_CLAIM} or more."
    if low is None or high is None or low <= 0 <= high:
        return f"the interval is too wide to decide; measure more {noun}s."
    return f"gained on {groups} {noun}s, not enough to say; measure {FEWEST_FOR_CLAIM} or more."


def change_in_words(difference: Estimate, interval: Interval = INTERVAL) -> str:
    """``+0.0012 (95% interval +0.0003 to +0.0020)``."""
    sentence = f"{difference.value:+z.4f}"  # values that round to zero have no minus sign
    if difference.low is None or difference.high is None:
        return sentence
    return f"{sentence} ({interval.level:.0%} interval {difference.low:+z.4f} to {difference.high:+z.4f})"


def combine(model: int, findings: Sequence[Finding]) -> Verdict:
    """One word over all findings."""
    words = {finding.word for finding in findings}
    if {"lost", "gained"} <= words:
        return Verdict(model, "mixed", tuple(findings))
    for word in ("lost", "gained", "undecided", "kept"):
        if word in words:
            return Verdict(model, word, tuple(findings))
    return Verdict(model, "no difference" if words else "undecided", tuple(findings))
