"""Held-out losses of source, converted, recovered and control models, on the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from surgery.evaluation.estimates import Estimate

    # Losses per token of each held-out document.
    Losses = list[NDArray[np.float64]]

# Differences that are computed: first minus second.
_PAIRS = (
    ("converted", "source"),
    ("recovered", "source"),
    ("recovered", "converted"),
    ("recovered", "untouched"),
    ("recovered", "temperature"),
    ("untouched", "source"),
    ("temperature", "source"),
)


@dataclass(frozen=True)
class Measured:
    """One model: its held-out loss in nats per token, its number of trained parameters, and a note."""

    name: str
    loss: Estimate | None
    learned: int
    note: str | None = None


@dataclass(frozen=True)
class Difference:
    """Held-out loss of one model minus the loss of another, paired by token; below 0 the first is better."""

    of: str
    minus: str
    difference: Estimate


@dataclass(frozen=True)
class Comparison:
    """All models of a run on the same ``tokens`` of the same ``documents``; intervals resample whole documents."""

    models: tuple[Measured, ...]
    differences: tuple[Difference, ...]
    tokens: int
    documents: int
    interval: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def difference(self, of: str, minus: str) -> Difference | None:
        """The difference of two models; None if it was not measured."""
        return next((item for item in self.differences if (item.of, item.minus) == (of, minus)), None)


def compare(losses: Mapping[str, Losses], learned: Mapping[str, int], notes: Mapping[str, str]) -> Comparison | None:
    """Estimates with 95% intervals, by a bootstrap over documents.

    Args:
        losses: losses of the same tokens in the same order, by name of the model.
        learned: number of trained parameters, by name; a model without losses is listed without a loss.
        notes: notes for users, by name.

    Returns:
        The comparison; None without held-out text.
    """
    if not losses or not any(part.size for part in next(iter(losses.values()))):
        return None
    from surgery.evaluation.statistics import INTERVAL

    reference = next(iter(losses.values()))
    models = tuple(
        Measured(name, _estimate(losses[name]) if name in losses else None, learned.get(name, 0), notes.get(name))
        for name in dict.fromkeys([*learned, *losses])
    )
    differences = tuple(
        Difference(of, minus, _paired(losses[of], losses[minus]))
        for of, minus in _PAIRS
        if of in losses and minus in losses
    )
    return Comparison(
        models=models,
        differences=differences,
        tokens=sum(part.size for part in reference),
        documents=len(reference),
        interval=asdict(INTERVAL),
    )


def _estimate(losses: Sequence[NDArray[np.float64]]) -> Estimate:
    from surgery.evaluation.loss.sample import Sample

    bucket = Sample(losses, None).bucket(1, max(part.size for part in losses), 0.0)
    assert bucket is not None
    return bucket.loss


def _paired(losses: Sequence[NDArray[np.float64]], base: Sequence[NDArray[np.float64]]) -> Estimate:
    from surgery.evaluation.loss.sample import Sample

    bucket = Sample(losses, base).bucket(1, max(part.size for part in losses), 0.0)
    assert bucket is not None and bucket.difference is not None
    return bucket.difference
