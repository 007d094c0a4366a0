"""One step of a calibration: the change of every head's numbers that helps the answers most for its loss on text.

Near the present numbers, a change d of one head's numbers changes the loss of text by t.d + d.F.d / 2, where t is the
gradient and F the Fisher information, which stands for the second derivative (a natural gradient, Amari 1998). It
changes the loss of an answer by g.d. The change that gains most in the answers, at a given rise of the loss of text, is
d = -F^-1 (g / p + t), with one price p for all heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from surgery.operations.ssmax.calibration.gradients import Array, RowGradients
from surgery.operations.ssmax.options import SSMaxOptions

# Added to each head's Fisher information, as a share of its mean over all heads: a head whose numbers hardly change the
# loss of the few texts may change it in others.
DAMPING = 0.3
# Heads are changed in the order of what their changes are worth until these make up this share of the whole worth; the
# others stay.
SHARE_OF_WORTH = 0.95
# Least and greatest gain of a head, and multiplier, from FEW keys to BEYOND times the longest haystack. Further from 1
# the loss is no longer the quadratic that a step assumes, and m(n) goes on to change beyond the lengths that were seen.
BOUNDS = (0.6, 1.8)
FEW, BEYOND = 16, 4
# Bounds of the price, in nats of an answer per nat of a predicted token of text.
_PRICES = (1e-3, 1e6)
_HALVINGS = 60


def form_columns(ssmax: SSMaxOptions, log_length: float) -> Array:
    """How the numbers of a form move b and s of m(n) = b + s ln n, and the gain g, ``(3, numbers)``.

    ======== ============================ =============================
    form     m(n)                         column of each number
    ======== ============================ =============================
    constant b                            (1, 0, 0)
    anchored 1 + s (ln n - ln N)          (-ln N, 1, 0)
    bias     s ln n + b                   (1, 0, 0), (-log_length, 1, 0)
    none     1                            no number
    ======== ============================ =============================

    With ``outputs: gain`` there is one more number, g, with the column (0, 0, 1).

    Args:
        ssmax: resolved options, of a form that has an identity.
        log_length: ln of a typical n. The numbers of ``bias`` are m at this n, and s, which are independent enough to
            be damped alike.
    """
    columns: list[tuple[float, float, float]] = {
        "constant": [(1.0, 0.0, 0.0)],
        "anchored": [(-math.log(ssmax.reference_length or 1), 1.0, 0.0)],
        "bias": [(1.0, 0.0, 0.0), (-log_length, 1.0, 0.0)],
        "none": [],
    }[ssmax.form]
    if ssmax.outputs == "gain":
        columns.append((0.0, 0.0, 1.0))
    return np.array(columns).T


def bounded(before: Array, after: Array, longest: int) -> Array:
    """The numbers after a step, whose changes are shortened where a head's multiplier or gain leaves its bounds.

    Args:
        before: b, s and g of every head, within the bounds, ``(layers, heads, 3)``.
        after: the same after the step.
        longest: tokens of the longest haystack.
    """
    share = np.ones(before.shape[:-1])
    for n in (FEW, BEYOND * longest):
        old, new = (numbers[..., 0] + numbers[..., 1] * math.log(n) for numbers in (before, after))
        bound = np.where(new > old, BOUNDS[1], BOUNDS[0])
        crossed = (new < BOUNDS[0]) | (new > BOUNDS[1])
        share = np.where(crossed, np.minimum(share, (bound - old) / np.where(crossed, new - old, 1.0)), share)
    found = before + share[..., None] * (after - before)
    found[..., 2] = after[..., 2].clip(*BOUNDS)
    return np.asarray(found, dtype=np.float64)


class Evidence:
    """The gradients of haystacks, by the numbers of a form.

    Args:
        rounds: the gradients of each round, which were taken at other numbers; the last round's are the present ones.
        columns: of the form, from :func:`form_columns`.
    """

    def __init__(self, rounds: Sequence[Sequence[RowGradients]], columns: Array) -> None:
        self._columns = columns
        present = rounds[-1]
        self.answers = _shrunk(np.stack([row.answers for row in present]) @ columns)
        self.text = _shrunk(np.stack([row.text for row in present]) @ columns)
        pooled = [row for rows in rounds for row in rows]
        self.fisher = _fisher(np.stack([row.text for row in pooled]) @ columns, [row.drawn for row in pooled])

    def step(self, allowed: float) -> tuple[Array, float]:
        """The change of b, s and g, ``(layers, heads, 3)``, and the gain that it promises in nats per answer.

        Args:
            allowed: by how much the loss of text may change, in nats per token. Where the gradient of text alone lowers
                the loss by more, it may be negative.
        """
        low, high = _PRICES
        for _ in range(_HALVINGS):
            price = math.sqrt(low * high)
            low, high = (price, high) if self.loss_change(self._change(price)) > allowed else (low, price)
        change = self._change(high)
        return np.asarray(change @ self._columns.T, dtype=np.float64), self.gain(change)

    @property
    def least(self) -> float:
        """The least change of the loss of text that a step can promise, in nats per token."""
        return self.loss_change(self._change(_PRICES[1]))

    def gain(self, change: Array) -> float:
        """By how much the log-probability of an answer rises, in nats."""
        return float(-(self.answers * change).sum())

    def loss_change(self, change: Array) -> float:
        """By how much the loss of text rises, in nats per token."""
        return float((self.text * change).sum() + 0.5 * np.einsum("lhi,lhij,lhj->", change, self.fisher, change))

    def _change(self, price: float) -> Array:
        """The best change at a price, of the heads whose changes are worth most.

        What the change of a head is worth: its gain over the price, less the loss of text, by the gradients. A head
        that hardly helps the answers may be worth its change by what it takes back of the text's loss.
        """
        wanted = self.answers / price + self.text
        change = -np.linalg.solve(self.fisher, wanted[..., None])[..., 0]
        worth = -(wanted * change).sum(-1)
        order = np.argsort(-worth, axis=None)
        last = int(np.searchsorted(np.cumsum(worth.ravel()[order]), SHARE_OF_WORTH * worth.sum()))
        kept = np.zeros(worth.size, dtype=bool)
        kept[order[: last + 1]] = True
        return np.where(kept.reshape(worth.shape)[..., None], change, 0.0)


def _shrunk(rows: Array) -> Array:
    """The mean over rows, each entry drawn towards 0 by the share of its square that is noise."""
    mean = rows.mean(0)
    noise = rows.var(0, ddof=1) / len(rows)
    return np.asarray(mean * np.clip(1 - noise / np.maximum(mean**2, np.finfo(float).tiny), 0, None))


def _fisher(rows: Array, drawn: Sequence[int]) -> Array:
    """The damped Fisher information of each head, per predicted token, ``(layers, heads, numbers, numbers)``.

    The gradient of a mean over T tokens has 1/T of the variance of one token's gradient.
    """
    weighted = rows * np.sqrt(np.asarray(drawn, dtype=float))[:, None, None, None]
    found = np.einsum("rlhi,rlhj->lhij", weighted, weighted) / len(rows)
    damping = DAMPING * np.einsum("lhii->i", found) / (found.shape[0] * found.shape[1])
    return np.asarray(found + np.diag(damping))
