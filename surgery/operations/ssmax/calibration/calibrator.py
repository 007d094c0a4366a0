"""The steps of a calibration of SSMax on a loaded model, with progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from surgery.errors import NoChoiceError
from surgery.operations.ssmax.calibration.results import HeldOutFindings, LayerNumbers, Round, StepTrial, worst_change
from surgery.operations.ssmax.calibration.step import Evidence, bounded, form_columns
from surgery.operations.ssmax.calibration_settings import GRADIENT_COST, TRIALS, SSMaxCalibrationSettings
from surgery.operations.ssmax.options import SSMaxOptions

if TYPE_CHECKING:
    from surgery.evaluation.retrieval.probes import ProbeSet
    from surgery.operations.ssmax.calibration.gradients import Array, RowGradients
    from surgery.operations.ssmax.calibration.guard import HeldOutGuard
    from surgery.operations.ssmax.calibration.store import GradientStore

OnProgress = Callable[[int, int, str], None]

# Where no trial of the last step holds, more are made, as long as a step can promise less; after them, these shares of
# the last one are tried.
MORE_TRIALS = 3
SHRUNK = (0.85, 0.7, 0.5, 0.25, 0.12)
# Of the allowed rise of the loss, what each step but the last may promise: the last one spends what is left.
EARLY_SHARE = 0.5
# A trial whose rise of the loss is at least this share of the allowed one ends the search, which aims a little above.
ENOUGH, AIM = 0.75, 0.87
# Least and greatest change of the measured rise with the promised one that the search reckons with.
SLOPES = (0.2, 2.0)


class StepCalibrator:
    """Takes the steps, and tries the last one on held-out text.

    Args:
        model: the source with SSMax of the form ``bias`` and gains of the outputs, at its identity.
        ssmax: the resolved options of the result.
        settings: of the calibration.
        store: of finished gradients.
        on_progress: called with finished work and all work, in tokens of a forward pass, and the current step.
    """

    def __init__(
        self,
        model: Any,
        ssmax: SSMaxOptions,
        settings: SSMaxCalibrationSettings,
        store: GradientStore,
        on_progress: OnProgress | None,
    ) -> None:
        from surgery.operations.ssmax.calibration.gradients import ssmax_modules

        self.model, self.ssmax, self.settings, self.store = model, ssmax, settings, store
        self.on_progress, self.done, self.total = on_progress, 0, 0
        modules = ssmax_modules(model)
        self.source = np.array([1.0, 0.0, 1.0]) * np.ones((len(modules), len(modules[0].bias), 1))
        self.rounds: list[Round] = []
        self.trials: list[StepTrial] = []
        self.longest = 0

    def run(self, haystacks: Sequence[Sequence[ProbeSet]], guard: HeldOutGuard) -> tuple[Array, HeldOutFindings]:
        """The numbers b, s and g of every head, ``(layers, heads, 3)``, and what the guard found with them.

        Args:
            haystacks: of each round.
            guard: measures held-out text.

        Raises:
            NoChoiceError: no choice keeps the loss, or none makes the answers likelier.
        """
        self.total = sum(GRADIENT_COST * one.tokens for own in haystacks for one in own) + (TRIALS + 1) * guard.tokens
        everything = [one for own in haystacks for one in own]
        log_length = float(np.mean([math.log(one.tokens) - 1 for one in everything]))  # the mean of ln n up to n
        self.longest = max(one.tokens for one in everything)
        columns = form_columns(self.ssmax, log_length)
        numbers, rows = self.source, []
        for number, own in enumerate(haystacks):
            rows.append(self._observe(numbers, own, f"haystacks of step {number + 1} of {len(haystacks)}"))
            evidence = Evidence(rows, columns)
            early = number + 1 < len(haystacks)
            step, promised = evidence.step(self.settings.max_loss_increase * (EARLY_SHARE if early else 1))
            self.rounds.append(_round(own, rows[-1], promised))
            if early:
                numbers = bounded(numbers, numbers + step, self.longest)
        return self._choose(numbers, evidence, guard)

    def layers(self, numbers: Array) -> tuple[LayerNumbers, ...]:
        """The numbers as values of the learned parameters."""
        from surgery.operations.ssmax.calibration.gradients import NUMBERS

        named = dict(zip(NUMBERS, np.moveaxis(numbers, -1, 0), strict=True))
        assert isinstance(self.ssmax.layers, tuple)
        return tuple(
            LayerNumbers(
                layer,
                {name: tuple(map(float, named[name][row])) for name in self.ssmax.parameters},
            )
            for row, layer in enumerate(self.ssmax.layers)
        )

    def _observe(self, numbers: Array, haystacks: Sequence[ProbeSet], what: str) -> list[RowGradients]:
        import torch

        from surgery.operations.ssmax.calibration.gradients import row_gradients, set_numbers

        set_numbers(self.model, numbers)
        found = []
        for number, haystack in enumerate(haystacks):
            self.report(0, what)
            seed = self.settings.seed * len(haystacks) + number

            def measure(haystack: ProbeSet = haystack, seed: int = seed) -> RowGradients:
                return row_gradients(self.model, haystack, torch.Generator().manual_seed(seed))

            found.append(self.store.get(numbers, haystack, seed, measure))
            self.report(GRADIENT_COST * haystack.tokens, what)
        return found

    def _choose(self, before: Array, evidence: Evidence, guard: HeldOutGuard) -> tuple[Array, HeldOutFindings]:
        """Of the tried last steps within the allowed loss, the one with the likeliest answers."""
        bound = self.settings.max_loss_increase
        best: tuple[Array, HeldOutFindings] | None = None
        allowed = bound
        while True:
            step, promised = evidence.step(allowed)
            numbers = bounded(before, before + step, self.longest)
            measured = self._try(numbers, allowed, promised, guard)
            if measured is not None and (best is None or measured.recall.calibrated > best[1].recall.calibrated):
                best = numbers, measured
            enough = ENOUGH * bound <= self.trials[-1].worst <= bound
            allowed = next_allowance(self.trials, bound)
            most = TRIALS + MORE_TRIALS if best is None else TRIALS
            if enough or len(self.trials) >= most or allowed < evidence.least:
                break
        for share in SHRUNK:
            if best is not None:
                break
            smaller = self.source + share * (numbers - self.source)
            measured = self._try(smaller, allowed, share * promised, guard)
            best = None if measured is None else (smaller, measured)
        if best is None:
            raise NoChoiceError(
                f"no choice keeps the loss on held-out text within {bound:+g}: after {len(self.trials)} trials "
                f"it still rises by {self.trials[-1].worst:+.4f} nats per token",
                hint="Allow more (--max-loss-increase), or give more text.",
            )
        recall = best[1].recall
        if not recall.gained:
            interval = "" if recall.low is None else f" (95% interval {recall.low:+z.4f} to {recall.high:+z.4f})"
            raise NoChoiceError(
                f"the answers to held-out questions did not become likelier: their log-probability of "
                f"{recall.log_probability:.2f} changes by {recall.calibrated - recall.log_probability:+z.4f}{interval}",
                hint="Give more text, or learn from more haystacks (--haystacks).",
            )
        return best

    def _try(self, numbers: Array, allowed: float, promised: float, guard: HeldOutGuard) -> HeldOutFindings | None:
        """What the guard finds; None where the loss rises too much, so that the answers decide nothing."""
        from surgery.operations.ssmax.calibration.gradients import set_numbers

        set_numbers(self.model, numbers)
        self.total = max(self.total, self.done + guard.tokens)
        passages = guard.measure_loss()
        worst = worst_change(passages)
        if worst > self.settings.max_loss_increase:
            self.total -= guard.answer_tokens
            self.trials.append(StepTrial(allowed, promised, worst, None))
            return None
        recall = guard.measure_answers()
        self.trials.append(StepTrial(allowed, promised, worst, recall.calibrated))
        return HeldOutFindings(passages, recall)

    def report(self, tokens: int, what: str) -> None:
        """Add finished work, in tokens of a forward pass, and report the progress."""
        self.done += tokens
        if self.on_progress is not None:
            self.on_progress(self.done, max(self.total, self.done), what)


def _round(haystacks: Sequence[ProbeSet], rows: Sequence[RowGradients], promised: float) -> Round:
    return Round(
        haystacks=len(haystacks),
        tokens=sum(one.tokens for one in haystacks),
        answers=sum(len(one.probes) for one in haystacks),
        answer_loss=float(np.mean([row.answer_loss for row in rows])),
        promised=promised,
    )


def next_allowance(trials: Sequence[StepTrial], bound: float) -> float:
    """What the next trial may promise, so that the measured rise of the loss comes a little below the bound.

    By a line through the two trials whose rise is nearest to that; through a single one, with slope 1. The measured
    rise grows with the promised one, but not by as much: the quadratic is of other texts, and of small changes.

    Args:
        trials: so far, at least one.
        bound: on the measured rise.
    """
    aim = AIM * bound
    nearest, *others = sorted(trials, key=lambda trial: abs(trial.worst - aim))
    slope = 1.0
    if others and others[0].allowed != nearest.allowed:
        slope = (others[0].worst - nearest.worst) / (others[0].allowed - nearest.allowed)
    return nearest.allowed + (aim - nearest.worst) / min(max(slope, SLOPES[0]), SLOPES[1])
