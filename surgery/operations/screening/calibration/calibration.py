"""``calibrate``: observe, choose, and try on held-out text until the loss rises by no more than is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from surgery.anatomy import Anatomy, Family, read_anatomy
from surgery.checkpoint import open_checkpoint, resolve
from surgery.data import read_documents
from surgery.errors import SurgeryError, UsageError
from surgery.loading import RunOptions, load_tokenizer
from surgery.operations import OPERATIONS, OperationOptions
from surgery.operations.screening import PARAMETERS, SOFTNESS, ScreeningOptions
from surgery.operations.screening.calibration.passages import Passage, divide, short_names
from surgery.operations.screening.calibration.results import Calibration, GuardText, LayerChoice, Trial

if TYPE_CHECKING:
    from surgery.operations.screening.calibration.choice import Choice, Evidence
    from surgery.operations.screening.calibration.grid import Grid, Tally
    from surgery.operations.screening.calibration.unit_fit import Fit

OnProgress = Callable[[int, int, str], None]

# How many choices are tried on the held-out passages; at least so many after the first that holds; and by how much
# the first step changes the price. While nothing holds, each step down is the square of the one before.
TRIALS = 6
TRIALS_AFTER_HOLDING = 3
FIRST_STEP = 4.0
# The last price that is tried: it buys only what costs nothing by the estimate, and a lower one buys the same.
LEAST_KNOB = 1e-30
# A pass forward and back costs about so many passes forward.
BACKWARD_COST = 3


class CalibrationSettings(BaseModel):
    """How to calibrate.

    Attributes:
        max_loss_increase: the loss of no held-out passage may rise by more, in nats per token.
        budget: choose by softmax mass instead: no head loses a greater share of it in any observed passage. The
            budget is lowered where the loss would rise by more than ``max_loss_increase``.
        lengths: tokens per passage; by default 1024 and 4096, no longer than the model was trained at.
        observe, hold_out: passages of the shortest length; of the others as many as make about as many tokens.
        rows: queries that are looked at in each observed passage.
        softness: width of the ramp below each threshold; 0 is hard.
        windows: one for each head, or one for the query heads of each key-value group, whose cache then can shrink: a
            single open head keeps it whole.
        seed: of the sample of queries.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_loss_increase: float = Field(default=0.005, gt=0, allow_inf_nan=False)
    budget: float | None = Field(default=None, gt=0, lt=1)
    lengths: tuple[PositiveInt, ...] | None = None
    observe: PositiveInt = 8
    hold_out: PositiveInt = 4
    rows: PositiveInt = 192
    softness: float = Field(default=SOFTNESS, ge=0, le=0.5)
    windows: Literal["head", "group"] = "head"
    seed: int = 0

    @field_validator("lengths")
    @classmethod
    def _long_enough(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or min(value) < 16):
            raise ValueError("a passage needs at least 16 tokens")
        return value


def calibrate(
    model: str | Path,
    text: Sequence[str | Path],
    *,
    options: Mapping[str, Any] | None = None,
    before: Sequence[Mapping[str, Any]] = (),
    settings: CalibrationSettings | None = None,
    revision: str | None = None,
    run: RunOptions | None = None,
    on_progress: OnProgress | None = None,
    family: Family | None = None,
) -> Calibration:
    """Choose thresholds and windows for a model on texts, without training.

    Args:
        model: a folder or hub id that was not converted.
        text: files, folders and globs of UTF-8 text; several kinds make the choice hold for others too.
        options: of the operation ``screening``: layers, heads, sinks, full_window.
        before: resolved options of the other operations of the plan, which act while screening is calibrated.
        settings: how much loss is allowed, lengths, and how much text to use.
        revision: branch, tag or commit of a hub model.
        run: device, dtype and attention backend.
        on_progress: called with work done, work in all (both in tokens of a forward pass), and what is being done.
        family: what a probe made of a family that the table does not have.

    Raises:
        UsageError: no text, or too little of it.
        PlanRefusedError: screening cannot be applied to this model.
        SurgeryError: no choice holds the loss, not even one that rejects next to nothing.
    """
    settings = settings or CalibrationSettings()
    run = run or RunOptions()
    check_settings(settings, options or {})
    source = resolve(model, revision)
    anatomy = read_anatomy(open_checkpoint(source), family=family)
    screening = resolved_options(options or {}, anatomy)
    lengths = known_lengths(settings, anatomy)
    tokenizer = load_tokenizer(source.folder, trust_remote_code=run.trust_remote_code)
    documents = short_names(read_documents([text] if isinstance(text, str | Path) else text))
    passages = divide(documents, tokenizer, lengths, observe=settings.observe, hold_out=settings.hold_out)

    from surgery.operations.screening.calibration.source_model import open_model

    # A unit is observed at the end of its bridge where it is the source.
    exponent = screening.renormalisation
    opened = screening if exponent is None else screening.model_copy(update={"renormalisation": 1.0})
    loaded = open_model(source.folder, anatomy, [*before, opened.resolved()], run)
    work = Work(loaded, screening, anatomy, settings, on_progress)
    trials: list[Trial] = []
    warnings = []
    if exponent is not None and exponent < 1:
        layers, guard = work.fit_units(passages.observed, passages.held_out)
        warnings.append(
            f"a unit is no identity: the held-out loss rises by up to {max(text.change for text in guard):+.4f} before "
            "it is distilled"
        )
    else:
        evidence, grid = work.observe(passages.observed)
        choice, guard, trials = work.choose(evidence, grid, passages.held_out)
        layers = work.layers(choice, evidence, grid)
        if exponent is not None:
            layers = work.with_gains(layers, passages.observed)
    if len(documents) < 3:
        warnings.append(
            f"{len(documents)} text(s) only: thresholds that hold on one kind of text break on another; give several"
        )
    if len({passage.text for passage in passages.held_out}) < 3:
        warnings.append(
            "passages of fewer than 3 texts were held out: other texts may lose more than the guard allowed"
        )
    if max(lengths) < anatomy.trained_length:
        warnings.append(f"calibrated at up to {max(lengths)} tokens; beyond, nothing was measured")
    return Calibration(
        model=source.name,
        commit=source.commit,
        settings=recorded(settings, lengths, screening, before),
        texts=passages.texts,
        layers=layers,
        guard=tuple(guard),
        trials=tuple(trials),
        warnings=tuple(warnings),
    )


def check_settings(settings: CalibrationSettings, options: Mapping[str, Any]) -> None:
    """Refuse what would not do what it says.

    Raises:
        UsageError: windows are shared by groups of which some heads are left out; or a setting of the guard, or of
            windows, is given for a unit, which no guard could hold.
    """
    if settings.windows == "group" and options.get("heads") is not None:
        raise UsageError(
            "windows by group need all heads of a group, but heads chooses some",
            hint="Leave heads out, or let each head have its own window.",
        )
    if options.get("form") != "unit" or options.get("renormalisation") == 1:
        return
    given = sorted({"max_loss_increase", "budget", "softness", "windows"} & settings.model_fields_set)
    if given:
        raise UsageError(
            f"{given[0]} does nothing for the form unit: its heads are fitted to attention's outputs, and training "
            "brings the loss back",
            hint="Leave it out; or start at the other end of the bridge, with renormalisation 1.",
        )


def known_lengths(settings: CalibrationSettings, anatomy: Anatomy) -> tuple[int, ...]:
    """The lengths that are asked for, or the usual ones.

    Raises:
        UsageError: the model was not trained at them.
    """
    lengths = settings.lengths or tuple(length for length in (1024, 4096) if length <= anatomy.trained_length)
    if not lengths or max(lengths) > anatomy.trained_length:
        raise UsageError(
            f"the model was trained at {anatomy.trained_length} tokens; passages of "
            f"{' and '.join(map(str, lengths or (1024, 4096)))} go beyond",
            hint=f"Give lengths that it knows: --lengths {anatomy.trained_length}",
        )
    return lengths


def recorded(
    settings: CalibrationSettings,
    lengths: Sequence[int],
    screening: ScreeningOptions,
    before: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What a calibration says of how it was made."""
    return {
        **settings.model_dump(mode="json"),
        "lengths": list(lengths),
        "heads": None if screening.heads is None else list(screening.heads),
        "sinks": screening.sinks,
        "full_window": screening.full_window,
        "before": [str(other["name"]) for other in before],
        **({} if screening.form == "gated" else {"form": "unit", "renormalisation": screening.renormalisation}),
    }


def resolved_options(options: Mapping[str, Any], anatomy: Anatomy) -> ScreeningOptions:
    """Options of the operation, as it starts while it is calibrated: open."""
    operation = OPERATIONS["screening"]
    operation.check_family(anatomy.family)
    given = {**options, "name": "screening", "open": True}
    resolved: OperationOptions = operation.resolve(ScreeningOptions.model_validate(given), anatomy)
    assert isinstance(resolved, ScreeningOptions)
    return resolved


class Work:
    """The model at hand, and progress over all that is done with it."""

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
        # Of each screened layer how many query heads have one window; None for each its own.
        self.shared: tuple[int, ...] | None = None
        if settings.windows == "group":
            assert isinstance(screening.layers, tuple)
            self.shared = tuple(anatomy.heads // anatomy.layers[int(layer)].kv_heads for layer in screening.layers)

    def observe(self, passages: Sequence[Passage]) -> tuple[Evidence, Grid]:
        """What every threshold and window would do to each head in these passages."""
        import torch

        from surgery.operations.screening.calibration.choice import weigh
        from surgery.operations.screening.calibration.grid import Grid
        from surgery.operations.screening.calibration.observation import observe_passage, sample_rows

        assert self.screening.full_window is not None
        grid = Grid.up_to(max(len(passage.tokens) for passage in passages), self.screening.full_window)
        generator = torch.Generator().manual_seed(self.settings.seed)
        # The trials are not counted yet: how many there will be is known only then.
        self.total = BACKWARD_COST * sum(len(passage.tokens) for passage in passages)
        found: list[tuple[int, Tally]] = []
        for passage in passages:
            self.say(0, f"observing {passage.text}")
            rows = sample_rows(len(passage.tokens), self.settings.rows, generator)
            tokens = torch.tensor([passage.tokens], device=self.model.device)
            found.append((len(passage.tokens), observe_passage(self.model, tokens, grid, rows)))
            self.say(BACKWARD_COST * len(passage.tokens), f"observing {passage.text}")
        return weigh(found), grid

    def choose(
        self, evidence: Evidence, grid: Grid, passages: Sequence[Passage]
    ) -> tuple[Choice, list[GuardText], list[Trial]]:
        """The choice that rejects most among those tried whose loss holds on every held-out passage.

        Raises:
            SurgeryError: none does.
        """
        from surgery.operations.screening.calibration.choice import by_damage, by_mass
        from surgery.operations.screening.calibration.guard import Guard, head_values, set_values

        allowed = self.settings.max_loss_increase
        guard = Guard(self.model, passages, self.say)
        self.total += (TRIALS + 1) * guard.tokens
        by_budget = self.settings.budget is not None
        knob = self.settings.budget if self.settings.budget is not None else first_price(evidence, allowed, self.shared)
        holds: float | None = None
        fails: float | None = None
        best: tuple[Choice, list[GuardText]] | None = None
        trials: list[Trial] = []
        last = TRIALS
        fall = FIRST_STEP
        while best is None or len(trials) < last:
            choice = (by_mass if by_budget else by_damage)(evidence, knob, self.shared)
            set_values(self.model, head_values(choice, grid, self.settings.softness), self.screening.heads)
            measured = guard.measure(until=allowed)
            worst = max(text.change for text in measured)
            trials.append(Trial(knob, choice.rejected, choice.damage, worst))
            if worst <= allowed and len(measured) == len(passages):
                if holds is None:
                    last = max(TRIALS, len(trials) + TRIALS_AFTER_HOLDING)
                holds = knob
                if best is None or choice.rejected > best[0].rejected:
                    best = choice, measured
                if by_budget and fails is None:
                    break  # what was asked for holds: more was not asked for
            elif knob == LEAST_KNOB:
                break
            else:
                fails = knob
            knob = max(_next_knob(holds, fails, fall), LEAST_KNOB)
            fall = min(fall * fall, 1 / LEAST_KNOB)
        if best is None:
            raise SurgeryError(
                f"no choice keeps the loss on held-out text within +{allowed:g}: after {len(trials)} trials "
                f"{trials[-1].rejected:.0%} of the keys rejected still cost {trials[-1].worst:+.4f}.",
                hint="Allow more (--max-loss-increase), give more text, or start --open and train.",
            )
        return (*best, trials)

    def layers(self, choice: Choice, evidence: Evidence, grid: Grid) -> tuple[LayerChoice, ...]:
        """The choice as start values."""
        from surgery.operations.screening.calibration.guard import head_values

        values = head_values(choice, grid, self.settings.softness)
        opened = choice.is_open(grid)
        heads = self._heads()
        assert isinstance(self.screening.layers, tuple)
        found = []
        for number, layer in enumerate(self.screening.layers):
            shares = [
                float(evidence.rejected[number, head, choice.threshold[number, head], choice.window[number, head]])
                for head in heads
            ]
            threshold, softness, log2_window = (
                tuple(values[name][number][head] for head in heads) for name in PARAMETERS
            )
            is_open = tuple(bool(opened[number, head]) for head in heads)
            found.append(LayerChoice(layer, threshold, softness, log2_window, tuple(shares), is_open))
        return tuple(found)

    def fit_units(
        self, observed: Sequence[Passage], held_out: Sequence[Passage]
    ) -> tuple[tuple[LayerChoice, ...], list[GuardText]]:
        """Start values of units, and what the held-out passages lose by them."""
        from surgery.operations.screening.calibration.guard import Guard, set_values
        from surgery.operations.screening.calibration.observation import screening_modules
        from surgery.operations.screening.calibration.unit_fit import around, choose_edges, fit_gains

        assert self.screening.full_window is not None and self.screening.renormalisation is not None
        tokens = sum(len(passage.tokens) for passage in observed)
        guard = Guard(self.model, held_out, self.say)
        self.total = 2 * tokens + 2 * guard.tokens
        shared = (self.screening.full_window, self.settings.rows, self.settings.seed, self.say)
        edges = choose_edges(self.model, observed, *shared)
        fit = fit_gains(self.model, observed, around(edges, self.screening.full_window), *shared)
        exponents = [[self.screening.renormalisation] * self.anatomy.heads for _ in screening_modules(self.model)]
        set_values(self.model, {**fit.values, "renormalisation": exponents}, self.screening.heads)
        return self._fitted(fit), guard.measure()

    def with_gains(self, layers: Sequence[LayerChoice], observed: Sequence[Passage]) -> tuple[LayerChoice, ...]:
        """What was chosen for ``gated``, with the gains that the other end of the bridge needs."""
        from dataclasses import replace

        from surgery.operations.screening import open_start
        from surgery.operations.screening.calibration.guard import set_values
        from surgery.operations.screening.calibration.unit_fit import as_they_are, fit_gains

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
        # The observer shows weights as they are before anything is rejected, whatever the values.
        set_values(self.model, {name: [[opened[name]] * len(heads)] * len(layers) for name in PARAMETERS}, chosen)
        shared = (self.screening.full_window, self.settings.rows, self.settings.seed, self.say)
        self.total = self.done + sum(len(passage.tokens) for passage in observed)
        fitted = self._fitted(fit_gains(self.model, observed, as_they_are(values), *shared))
        return tuple(
            replace(layer, log2_gain=own.log2_gain, log2_bound=own.log2_bound)
            for layer, own in zip(layers, fitted, strict=True)
        )

    def _heads(self) -> list[int]:
        return list(self.screening.heads if self.screening.heads is not None else range(self.anatomy.heads))

    def _fitted(self, fit: Fit) -> tuple[LayerChoice, ...]:
        heads = self._heads()
        assert isinstance(self.screening.layers, tuple)
        found = []
        for number, layer in enumerate(self.screening.layers):
            assert isinstance(layer, int)
            values = {name: tuple(rows[number][head] for head in heads) for name, rows in fit.values.items()}
            rejected, missed = (tuple(rows[number][head] for head in heads) for rows in (fit.rejected, fit.missed))
            found.append(LayerChoice(layer, **values, rejected=rejected, open=(False,) * len(heads), missed=missed))
        return tuple(found)

    def say(self, tokens: int, what: str) -> None:
        """Note work that was done, in tokens of a forward pass."""
        self.done += tokens
        if self.on_progress is not None:
            self.on_progress(self.done, max(self.total, self.done), what)


def first_price(evidence: Evidence, allowed: float, shared: Sequence[int] | None = None) -> float:
    """The price at which the estimate of the damage is what is allowed, by halving; ``shared`` as of `by_damage`."""
    from surgery.operations.screening.calibration.choice import by_damage

    low, high = 1e-9, 1e6
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        if by_damage(evidence, middle, shared).damage <= allowed:
            low = middle
        else:
            high = middle
    return low


def _next_knob(holds: float | None, fails: float | None, fall: float) -> float:
    """Between the two where both are known, on a logarithmic scale; else a step up, or down by ``fall``."""
    if holds is not None and fails is not None:
        return math.sqrt(holds * fails)
    if holds is not None:
        return holds * FIRST_STEP
    assert fails is not None
    return fails / fall
