"""The steps of a calibration on a loaded model, with progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from surgery.anatomy import Anatomy
from surgery.errors import NoChoiceError
from surgery.evaluation.passages import Passage
from surgery.operations.screening import PARAMETERS, ScreeningOptions
from surgery.operations.screening.calibration.results import CalibratedLayer, GuardedPassage, Trial
from surgery.operations.screening.calibration_settings import BACKWARD_COST, TRIALS, CalibrationSettings

if TYPE_CHECKING:
    from surgery.operations.screening.calibration.choice import Choice, Effects
    from surgery.operations.screening.calibration.grid import Grid, PassageSums
    from surgery.operations.screening.calibration.unit_fit import Fit
    from surgery.operations.screening.calibration.window_choice import GroupEffects

OnProgress = Callable[[int, int, str], None]

# Trials after the first choice within the allowed loss; factor of the first change of the strength (a price on loss, or
# a budget of softmax mass). As long as no choice is within the allowed loss, each step down is the square of the step
# before.
TRIALS_AFTER_HOLDING = 3
FIRST_STEP = 4.0
# The last strength: by the estimate its choice costs no loss, and a lower strength gives the same choice.
LEAST_STRENGTH = 1e-30


class Calibrator:
    """Observes texts with a model, chooses thresholds and windows, and reports progress."""

    def __init__(
        self,
        model: Any,
        screening: ScreeningOptions,
        anatomy: Anatomy,
        settings: CalibrationSettings,
        on_progress: OnProgress | None,
    ) -> None:
        self.model, self.screening, self.anatomy, self.settings = model, screening, anatomy, settings
        self.on_progress, self.done, self.total = on_progress, 0, 0
        # For each screened layer the number of query heads that share a window; None if each head has its own.
        self.shared: tuple[int, ...] | None = None
        if settings.by_group:
            assert isinstance(screening.layers, tuple)
            self.shared = tuple(anatomy.heads // anatomy.layers[int(layer)].kv_heads for layer in screening.layers)

    def observe(self, passages: Sequence[Passage]) -> tuple[Effects | GroupEffects, Grid]:
        """The effects of every threshold and window on each head in these passages; or of windows on each group."""
        import torch

        from surgery.operations.screening.calibration.choice import mean_effects
        from surgery.operations.screening.calibration.grid import Grid
        from surgery.operations.screening.calibration.observation import observe_passage, sample_rows

        assert self.screening.full_window is not None
        longest = max(len(passage.tokens) for passage in passages)
        saves_keys = self.settings.save == "keys"
        grid = (Grid.up_to if saves_keys else Grid.of_windows)(longest, self.screening.full_window)
        generator = torch.Generator().manual_seed(self.settings.seed)
        # Without the trials, whose number is not known yet.
        self.total = BACKWARD_COST * sum(len(passage.tokens) for passage in passages)
        found: list[tuple[int, PassageSums]] = []
        for passage in passages:
            self.report(0, f"observing {passage.document}")
            rows = sample_rows(len(passage.tokens), self.settings.rows, generator)
            tokens = torch.tensor([passage.tokens], device=self.model.device)
            found.append((len(passage.tokens), observe_passage(self.model, tokens, grid, rows)))
            self.report(BACKWARD_COST * len(passage.tokens), f"observing {passage.document}")
        return mean_effects(found) if saves_keys else self._group_effects(found, grid, longest), grid

    def _group_effects(self, found: Sequence[tuple[int, PassageSums]], grid: Grid, longest: int) -> GroupEffects:
        from surgery.operations.screening.calibration.currency import currency
        from surgery.operations.screening.calibration.window_choice import group_effects

        assert self.shared is not None
        own = currency(self.settings, self.anatomy, self.screening, self.settings.context or longest)
        windows = [*grid.windows[:-1], math.inf]
        layers = [int(layer) for layer in self.screening.layers]
        return group_effects(found, self.shared, [[own(layer, window) for window in windows] for layer in layers])

    def chooser(self, effects: Effects | GroupEffects) -> Callable[[float], Choice]:
        """The choice for a price on the loss, or for a budget of softmax mass."""
        from surgery.operations.screening.calibration.choice import Effects, choose_by_loss, choose_by_mass

        if not isinstance(effects, Effects):
            return effects.choose
        return partial(choose_by_loss if self.settings.budget is None else choose_by_mass, effects, shared=self.shared)

    def choose(
        self, effects: Effects | GroupEffects, grid: Grid, passages: Sequence[Passage]
    ) -> tuple[Choice, list[GuardedPassage], list[Trial]]:
        """Of the tried choices within the allowed loss on every held-out passage, the one that saves most.

        Raises:
            NoChoiceError: no choice is within the allowed loss.
        """
        from surgery.operations.screening.calibration.choice import price_for
        from surgery.operations.screening.calibration.guard import HeldOutLoss, head_values, set_values

        allowed = self.settings.max_loss_increase
        guard = HeldOutLoss(self.model, passages, self.report)
        self.total += (TRIALS + 1) * guard.tokens
        budget = self.settings.budget
        chooser = self.chooser(effects)
        strength = budget if budget is not None else price_for(chooser, allowed)
        holds: float | None = None
        fails: float | None = None
        best: tuple[Choice, list[GuardedPassage]] | None = None
        trials: list[Trial] = []
        last = TRIALS
        fall = FIRST_STEP
        while best is None or len(trials) < last:
            choice = chooser(strength)
            set_values(self.model, head_values(choice, grid, self.settings.softness), self.screening.heads)
            measured = guard.measure(until=allowed)
            worst = max(text.change for text in measured)
            trials.append(Trial(strength, choice.rejected, choice.loss_increase, worst))
            if worst <= allowed and len(measured) == len(passages):
                if holds is None:
                    last = max(TRIALS, len(trials) + TRIALS_AFTER_HOLDING)
                holds = strength
                if best is None or choice.saved > best[0].saved:
                    best = choice, measured
                if budget is not None and fails is None:
                    break  # the budget holds, and a larger one was not asked for
            elif strength == LEAST_STRENGTH:
                break
            else:
                fails = strength
            strength = max(_next_strength(holds, fails, fall), LEAST_STRENGTH)
            fall = min(fall * fall, 1 / LEAST_STRENGTH)
        if best is None:
            raise NoChoiceError(
                f"no choice keeps the loss on held-out text within +{allowed:g}: after {len(trials)} trials "
                f"{trials[-1].rejected:.0%} of the keys rejected still cost {trials[-1].worst:+.4f} nats per token",
                hint="Allow more (--max-loss-increase), give more text, or convert with --open and train.",
            )
        return (*best, trials)

    def layers(self, choice: Choice, effects: Effects | GroupEffects, grid: Grid) -> tuple[CalibratedLayer, ...]:
        """The choice as start values."""
        from surgery.operations.screening.calibration.guard import head_values

        values = head_values(choice, grid, self.settings.softness)
        opened = choice.is_open(grid)
        heads = self._heads()
        assert isinstance(self.screening.layers, tuple)
        found = []
        for number, layer in enumerate(self.screening.layers):
            shares = [
                float(effects.rejected[number, head, choice.threshold[number, head], choice.window[number, head]])
                for head in heads
            ]
            threshold, softness, log2_window = (
                tuple(values[name][number][head] for head in heads) for name in PARAMETERS
            )
            is_open = tuple(bool(opened[number, head]) for head in heads)
            found.append(CalibratedLayer(layer, threshold, softness, log2_window, tuple(shares), is_open))
        return tuple(found)

    def fit_units(
        self, observed: Sequence[Passage], held_out: Sequence[Passage]
    ) -> tuple[tuple[CalibratedLayer, ...], list[GuardedPassage]]:
        """Start values of units, and the losses of the held-out passages with them."""
        from surgery.operations.screening.calibration.guard import HeldOutLoss, set_values
        from surgery.operations.screening.calibration.observation import screening_modules
        from surgery.operations.screening.calibration.unit_fit import choose_bounds, fit_gains, nearby_candidates

        assert self.screening.full_window is not None and self.screening.renormalisation is not None
        tokens = sum(len(passage.tokens) for passage in observed)
        guard = HeldOutLoss(self.model, held_out, self.report)
        self.total = 2 * tokens + 2 * guard.tokens
        shared = (self.screening.full_window, self.settings.rows, self.settings.seed, self.report)
        edges = choose_bounds(self.model, observed, *shared)
        fit = fit_gains(self.model, observed, nearby_candidates(edges, self.screening.full_window), *shared)
        exponents = [[self.screening.renormalisation] * self.anatomy.heads for _ in screening_modules(self.model)]
        set_values(self.model, {**fit.values, "renormalisation": exponents}, self.screening.heads)
        return self._fitted(fit), guard.measure()

    def with_gains(self, layers: Sequence[CalibratedLayer], observed: Sequence[Passage]) -> tuple[CalibratedLayer, ...]:
        """A choice for ``gated`` with gains for the form ``unit``, where a bridge ends."""
        from dataclasses import replace

        from surgery.operations.screening import open_start
        from surgery.operations.screening.calibration.guard import set_values
        from surgery.operations.screening.calibration.unit_fit import fit_gains, fixed_candidates

        assert self.screening.full_window is not None
        opened = open_start(self.screening.full_window)
        heads = range(self.anatomy.heads)
        chosen = self._heads()
        values = {
            name: [
                [dict(zip(chosen, getattr(layer, name), strict=True)).get(head, opened[name]) for head in heads]
                for layer in layers
            ]
            for name in PARAMETERS
        }
        # The observer shows the weights before any rejection, whatever the values.
        set_values(self.model, {name: [[opened[name]] * len(heads)] * len(layers) for name in PARAMETERS}, chosen)
        shared = (self.screening.full_window, self.settings.rows, self.settings.seed, self.report)
        self.total = self.done + sum(len(passage.tokens) for passage in observed)
        fitted = self._fitted(fit_gains(self.model, observed, fixed_candidates(values), *shared))
        return tuple(
            replace(layer, log2_gain=own.log2_gain, log2_bound=own.log2_bound)
            for layer, own in zip(layers, fitted, strict=True)
        )

    def _heads(self) -> list[int]:
        return list(self.screening.heads if self.screening.heads is not None else range(self.anatomy.heads))

    def _fitted(self, fit: Fit) -> tuple[CalibratedLayer, ...]:
        heads = self._heads()
        assert isinstance(self.screening.layers, tuple)
        found = []
        for number, layer in enumerate(self.screening.layers):
            assert isinstance(layer, int)
            values = {name: tuple(rows[number][head] for head in heads) for name, rows in fit.values.items()}
            rejected, missed = (tuple(rows[number][head] for head in heads) for rows in (fit.rejected, fit.missed))
            found.append(CalibratedLayer(layer, **values, rejected=rejected, open=(False,) * len(heads), missed=missed))
        return tuple(found)

    def report(self, tokens: int, what: str) -> None:
        """Add finished work, in tokens of a forward pass, and report the progress."""
        self.done += tokens
        if self.on_progress is not None:
            self.on_progress(self.done, max(self.total, self.done), what)


def _next_strength(holds: float | None, fails: float | None, fall: float) -> float:
    """The next strength to try: the geometric mean where both are known, else one step up, or down by ``fall``."""
    if holds is not None and fails is not None:
        return math.sqrt(holds * fails)
    if holds is not None:
        return holds * FIRST_STEP
    assert fails is not None
    return fails / fall
