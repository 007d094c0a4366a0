"""From losses per token to buckets, paired differences, bootstrap intervals and a verdict."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from surgery.errors import UsageError
from surgery.evaluation.results import Bucket, CurvePoint, Estimate, Finding, Interval, Verdict, Word, perplexity

Losses = Sequence[NDArray[np.float64]]

INTERVAL = Interval(method="percentile bootstrap over documents", level=0.95, samples=2000, seed=0)
# Half a percent of perplexity: less than what one kind of text differs from another, more than float noise.
MARGIN = 0.005
SCORE_MARGIN = 0.01
POINTS_PER_OCTAVE = 8
FEWEST_IN_POINT = 100


def default_edges(length: int) -> tuple[int, ...]:
    """64, 128, ... below ``length``, then the last context that a sequence of this length has."""
    edges = [2**power for power in range(6, 40) if 2**power < length - 1]
    return (*edges, length - 1)


def check_edges(edges: Sequence[int], length: int) -> tuple[int, ...]:
    """Upper ends of buckets, rising; what lies beyond the longest context is cut, the rest to it is one more bucket.

    Raises:
        UsageError: an edge is not a positive number or they do not rise.
    """
    if not edges or min(edges) < 1 or any(left >= right for left, right in pairwise(edges)):
        raise UsageError(
            f"buckets {list(edges)} must be positive and rising.",
            hint="They are the most tokens seen in each bucket, as in 256, 1024, 4096.",
        )
    return (*(edge for edge in edges if edge < length - 1), length - 1)


class Resampling:
    """Means with intervals that resample whole groups, since what belongs to one document is not independent.

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
        """Sum over sum of counts, each given item by item; no interval where fewer than two groups count."""
        value = float(sums.sum() / counts.sum())
        # What is smaller is the rounding of a sum that is zero, and must not decide that an interval excludes zero.
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
        # Rounding may put the mean of equal numbers a hair outside their interval.
        return Estimate(value, min(low, value), max(high, value))


class Sample:
    """Losses of one model, and of its base on the same tokens, summed per sequence and bucket.

    Args:
        losses: one array per sequence; entry i is the loss of the prediction that sees i + 1 tokens.
        base: the same for the base, or None.
        documents: the document of each sequence; by default each is of its own.
        interval: level, number of resamples and seed.
    """

    def __init__(
        self,
        losses: Losses,
        base: Losses | None,
        documents: Sequence[Hashable] | None = None,
        interval: Interval = INTERVAL,
    ) -> None:
        self.losses, self.base = losses, base
        self._resampling = Resampling(range(len(losses)) if documents is None else documents, interval)

    def bucket(self, first: int, last: int, margin: float) -> Bucket | None:
        """The bucket of predictions that see ``first`` to ``last`` tokens, or None where no sequence reaches."""
        own = [loss[first - 1 : last] for loss in self.losses]
        counts = np.array([len(part) for part in own], dtype=np.float64)
        if not counts.any():
            return None
        loss = self._estimate(own, counts)
        bucket = Bucket(
            first=first,
            last=first - 1 + int(counts.max()),
            tokens=int(counts.sum()),
            sequences=int((counts > 0).sum()),
            documents=int((self._resampling.by_group(counts) > 0).sum()),
            loss=loss,
            perplexity=perplexity(loss.value),
        )
        if self.base is None:
            return bucket
        reference = [part[first - 1 : last] for part in self.base]
        paired = [left - right for left, right in zip(own, reference, strict=True)]
        base_loss, difference = self._estimate(reference, counts), self._estimate(paired, counts)
        return replace(
            bucket,
            base_loss=base_loss,
            base_perplexity=perplexity(base_loss.value),
            difference=difference,
            verdict="no difference" if not any(part.any() for part in paired) else judge(difference, margin),
        )

    def curve(self, length: int) -> tuple[CurvePoint, ...]:
        """Means over narrow ranges of context: eight to an octave, wider where few predictions fall into one."""
        ends = {round(2 ** (step / POINTS_PER_OCTAVE)) for step in range(POINTS_PER_OCTAVE * 40)}
        points = []
        first = 1
        for last in [*(end for end in sorted(ends) if end < length - 1), length - 1]:
            own = np.concatenate([loss[first - 1 : last] for loss in self.losses])
            if not own.size or (own.size < FEWEST_IN_POINT and last < length - 1):
                continue
            base = None
            if self.base is not None:
                base = float(np.mean(np.concatenate([loss[first - 1 : last] for loss in self.base])))
            points.append(CurvePoint(first, last, int(own.size), float(np.mean(own)), base))
            first = last + 1
        return tuple(points)

    def _estimate(self, parts: Losses, counts: NDArray[np.float64]) -> Estimate:
        return self._resampling.mean(np.array([part.sum() for part in parts]), counts)


def judge(difference: Estimate, margin: float, *, more_is_better: bool = False) -> Word:
    """Lost or gained where the interval excludes zero, kept where it lies within the margin, else undecided."""
    if difference.low is None or difference.high is None:
        return "undecided"
    if -margin <= difference.low and difference.high <= margin:
        return "kept"
    if difference.low > 0:
        return "gained" if more_is_better else "lost"
    if difference.high < 0:
        return "lost" if more_is_better else "gained"
    return "undecided"


def change_in_words(difference: Estimate, interval: Interval = INTERVAL) -> str:
    """``+0.0012 (95% interval +0.0003 to +0.0020)``."""
    sentence = f"{difference.value:+z.4f}"  # what rounds to zero has no minus sign
    if difference.low is None or difference.high is None:
        return sentence
    return f"{sentence} ({interval.level:.0%} interval {difference.low:+z.4f} to {difference.high:+z.4f})"


def conclude(measure: str, overall: Bucket, buckets: Sequence[Bucket], margin: float) -> Finding:
    """What the loss says over all tokens, and where single buckets say otherwise."""
    assert overall.difference is not None and overall.verdict is not None
    if overall.verdict == "no difference":
        return Finding(measure, "no difference", "Every token has exactly the same loss in both models.")
    sentence = f"The loss changed by {change_in_words(overall.difference)} nats per token"
    if overall.difference.low is None:
        sentence += "; one document gives no interval, so this decides nothing."
        return Finding(measure, overall.verdict, sentence)
    sentence += {
        "kept": f", within the ±{margin:g} that count as kept.",
        "lost": ": the model predicts worse than its base.",
        "gained": ": the model predicts better than its base.",
        "undecided": ": the interval is too wide to decide; measure more text.",
    }[overall.verdict]
    for word in ("lost", "gained"):
        ranges = [f"{bucket.first} to {bucket.last}" for bucket in buckets if bucket.verdict == word]
        if ranges and word != overall.verdict:
            sentence += f" It {word} where {', '.join(ranges)} tokens are seen."
    return Finding(measure, overall.verdict, sentence)


def combine(model: int, findings: Sequence[Finding]) -> Verdict:
    """One word over all findings."""
    words = {finding.word for finding in findings}
    if {"lost", "gained"} <= words:
        return Verdict(model, "mixed", tuple(findings))
    for word in ("lost", "gained", "undecided", "kept"):
        if word in words:
            return Verdict(model, word, tuple(findings))
    return Verdict(model, "no difference" if words else "undecided", tuple(findings))
