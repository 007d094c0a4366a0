"""The losses of a model and its base on the same tokens: buckets, curve, paired differences, finding."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from surgery.evaluation.estimates import Estimate, Finding, Interval, perplexity
from surgery.evaluation.loss.result import Bucket, CurvePoint
from surgery.evaluation.statistics import INTERVAL, Resampling, change_in_words, judge, why_undecided

Losses = Sequence[NDArray[np.float64]]

POINTS_PER_OCTAVE = 8
FEWEST_IN_POINT = 100


class Sample:
    """Losses of one model, and of its base on the same tokens, summed per sequence and bucket.

    Args:
        losses: one array per sequence; entry i is the loss of the prediction that sees i + 1 tokens.
        base: the same for the base, or None.
        documents: the document of each sequence; default: every sequence is a document.
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
        """The bucket of predictions that see ``first`` to ``last`` tokens; None if no sequence is long enough."""
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
            verdict="no difference"
            if not any(part.any() for part in paired)
            else judge(difference, margin, groups=bucket.documents),
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


def conclude(measure: str, overall: Bucket, buckets: Sequence[Bucket], margin: float) -> Finding:
    """The finding over all tokens, and the buckets with another verdict."""
    assert overall.difference is not None and overall.verdict is not None
    if overall.verdict == "no difference":
        return Finding(measure, "no difference", "Every token has exactly the same loss in both models.")
    sentence = f"The loss changed by {change_in_words(overall.difference)} nats per token"
    if overall.difference.low is None:
        sentence += "; one document gives no interval, so this is undecided."
        return Finding(measure, overall.verdict, sentence)
    sentence += {
        "kept": f", within the margin of ±{margin:g} that counts as kept.",
        "lost": ": the model predicts worse than its base.",
        "gained": ": the model predicts better than its base.",
        "undecided": f": {why_undecided(overall.difference, overall.documents, 'document', margin)}",
    }[overall.verdict]
    for word in ("lost", "gained"):
        ranges = [f"{bucket.first} to {bucket.last}" for bucket in buckets if bucket.verdict == word]
        if ranges and word != overall.verdict:
            sentence += f" It {word} with {', '.join(ranges)} tokens seen."
    return Finding(measure, overall.verdict, sentence)
