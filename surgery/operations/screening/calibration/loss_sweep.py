"""``sweep``: choices of thresholds and windows for several allowed losses, from one observation.

A calibration finds one choice. A sweep shows several: for each allowed loss, the share of rejected keys and the loss
measured on other text. Each point is a calibration that `convert --calibration` accepts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgery.anatomy import Anatomy, read_anatomy
from surgery.checkpoint import open_checkpoint, resolve
from surgery.data import read_documents
from surgery.errors import PlanRefusedError, UsageError
from surgery.loading import RunOptions, load_tokenizer
from surgery.operations.inspection import converted_already, unverified_family
from surgery.operations.screening import ScreeningOptions
from surgery.operations.screening.calibration.calibration import resolved_options
from surgery.operations.screening.calibration.calibrator import Calibrator, OnProgress
from surgery.operations.screening.calibration.passages import cut_from_start, divide, short_names
from surgery.operations.screening.calibration.results import Calibration, GuardedPassage, Trial
from surgery.operations.screening.calibration.settings_check import check_settings, known_lengths, recorded
from surgery.operations.screening.calibration_settings import CalibrationSettings

# Estimated increases of the loss, in nats per token; a sweep measures the true increases.
ALLOWED = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
BLOCK = 128


@dataclass(frozen=True)
class LengthResult:
    """Results of a point on the measured passages of one length: means, and the passage with the largest increase.

    ``blocks`` is the share of blocks of 128 queries and 128 keys that are outside the windows of all query heads of a
    key-value head, so that a kernel can skip them.
    """

    tokens: int
    passages: int
    rejected: float
    blocks: float
    change: float
    worst: float
    worst_text: str


@dataclass(frozen=True)
class SweepPoint:
    """One choice.

    Attributes:
        allowed: allowed increase of the loss, estimated on the observed passages; nats per token.
        price: price on loss that gives this estimate, as in `choose_by_loss`.
        estimated: estimated increase of the loss by the choice.
        observed: share of keys rejected in the observed passages.
        lengths: measured results by length.
        calibration: the choice, for `convert --calibration`; its guard has every measured passage.
    """

    allowed: float
    price: float
    estimated: float
    observed: float
    lengths: tuple[LengthResult, ...]
    calibration: Calibration

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the values of every head."""
        plain = {name: getattr(self, name) for name in ("allowed", "price", "estimated", "observed")}
        return {
            **plain,
            "lengths": [asdict(length) for length in self.lengths],
            "passages": [{**asdict(text), "change": text.change} for text in self.calibration.guard],
            "calibration_sha256": self.calibration.hash,
        }


@dataclass(frozen=True)
class Sweep:
    """All points, in ascending order of the allowed loss.

    Attributes:
        model, commit: the source model.
        settings: the settings of the sweep.
        texts: for each text its name, and the numbers of observed and held-out passages.
        other_text: whether other texts were measured, instead of the held-out passages.
        points: the choices.
    """

    model: str
    commit: str | None
    settings: Mapping[str, Any]
    texts: tuple[Mapping[str, Any], ...]
    other_text: bool
    points: tuple[SweepPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "model": self.model,
            "commit": self.commit,
            "settings": dict(self.settings),
            "texts": [dict(text) for text in self.texts],
            "other_text": self.other_text,
            "points": [point.to_dict() for point in self.points],
        }


def sweep(
    model: str | Path,
    text: Sequence[str | Path],
    *,
    measure_on: Sequence[str | Path] = (),
    allowed: Sequence[float] = ALLOWED,
    options: Mapping[str, Any] | None = None,
    settings: CalibrationSettings | None = None,
    revision: str | None = None,
    run: RunOptions | None = None,
    on_progress: OnProgress | None = None,
    allow_unverified: bool = False,
) -> Sweep:
    """Measure several choices of thresholds and windows, from one observation of the texts.

    Args:
        model: a folder or hub id that was not converted.
        text: files, folders and globs to observe.
        measure_on: other texts to measure; by default the held-out part of ``text``.
        allowed: estimated increases of the loss in nats per token; each gives a point.
        options: of the operation ``screening``: layers, heads, sinks, full_window.
        settings: lengths, passages and softness. ``hold_out`` is the number of measured passages of the shortest
            length, or with ``measure_on`` of each length. The settings of the guard have no effect.
        revision: branch, tag or commit of a hub model.
        run: device, dtype and attention backend.
        on_progress: called with finished work and all work, in tokens of a forward pass, and the current step in words.
        allow_unverified: accept a family that is not in the table, by a probe of its model.

    Raises:
        UsageError: there is no text or too little, or ``allowed`` is empty.
        PlanRefusedError: screening cannot be applied to this model.
    """
    if not allowed or min(allowed) <= 0:
        raise UsageError(f"allowed losses {list(allowed)}: each must be above 0, in nats per token")
    settings = settings or CalibrationSettings()
    check_settings(settings, options or {})
    run = run or RunOptions()
    source = resolve(model, revision)
    checkpoint = open_checkpoint(source)
    anatomy = read_anatomy(checkpoint, family=unverified_family(checkpoint) if allow_unverified else None)
    if reason := converted_already(anatomy):
        raise PlanRefusedError(
            f"this checkpoint was {reason}, so the result of a sweep could not be applied to it",
            hint="Sweep its source, which `surgery revert` restores.",
        )
    screening = resolved_options(options or {}, anatomy)
    lengths = known_lengths(settings, anatomy)
    tokenizer = load_tokenizer(source.folder, trust_remote_code=run.trust_remote_code)
    documents = short_names(read_documents(text))
    passages = divide(documents, tokenizer, lengths, observe=settings.observe, hold_out=settings.hold_out)
    measured = passages.held_out
    if measure_on:
        measured = cut_from_start(short_names(read_documents(measure_on)), tokenizer, lengths, settings.hold_out)

    from surgery.operations.screening.calibration.choice import choose_by_loss, price_for
    from surgery.operations.screening.calibration.guard import HeldOutLoss, head_values, set_values
    from surgery.operations.screening.calibration.source_model import open_model

    calibrator = Calibrator(
        open_model(source.folder, anatomy, [screening.resolved()], run), screening, anatomy, settings, on_progress
    )
    effects, grid = calibrator.observe(passages.observed)
    guard = HeldOutLoss(calibrator.model, measured, calibrator.report)
    calibrator.total += (len(allowed) + 1) * guard.tokens
    kept = {**recorded(settings, lengths, screening), "max_loss_increase": None}
    points = []
    for limit in sorted(set(allowed)):
        price = price_for(effects, limit, calibrator.shared)
        choice = choose_by_loss(effects, price, calibrator.shared)
        set_values(calibrator.model, head_values(choice, grid, settings.softness), screening.heads)
        found = guard.measure()
        worst = max(text.change for text in found)
        calibration = Calibration(
            model=source.name,
            commit=source.commit,
            settings=kept,
            texts=passages.texts,
            layers=calibrator.layers(choice, effects, grid),
            guard=tuple(found),
            trials=(Trial(price, choice.rejected, choice.loss_increase, worst),),
            warnings=("a point of a sweep, which no guard checked",),
        )
        measures = by_length(found, _group_windows(calibration, anatomy, screening), screening.sinks)
        points.append(SweepPoint(limit, price, choice.loss_increase, choice.rejected, measures, calibration))
    return Sweep(source.name, source.commit, kept, passages.texts, bool(measure_on), tuple(points))


def by_length(measured: Sequence[GuardedPassage], windows: Sequence[float], sinks: int) -> tuple[LengthResult, ...]:
    """Means over the passages of each length; ``windows`` of the key-value heads of all layers."""
    found = []
    for tokens in sorted({text.tokens for text in measured}):
        own = [text for text in measured if text.tokens == tokens]
        worst = max(own, key=lambda text: text.change)
        rejected = sum(text.rejected for text in own) / len(own)
        change = sum(text.change for text in own) / len(own)
        blocks = sum(blocks_outside(window, tokens, sinks) for window in windows) / len(windows)
        found.append(LengthResult(tokens, len(own), rejected, blocks, change, worst.change, worst.text))
    return tuple(found)


def blocks_outside(window: float, tokens: int, sinks: int) -> float:
    """Share of the causal blocks of 128 queries and 128 keys without a key in the window and without a sink."""
    count = math.ceil(tokens / BLOCK)
    outside = sum(
        1
        for row in range(count)
        for column in range(row)
        # The nearest pair of the block: its first query and its last key.
        if row * BLOCK - (column * BLOCK + BLOCK - 1) >= window and column * BLOCK >= sinks
    )
    return outside / (count * (count + 1) / 2)


def _group_windows(calibration: Calibration, anatomy: Anatomy, screening: ScreeningOptions) -> list[float]:
    """The widest window of each key-value head of the screened layers; infinite if a query head has no window."""
    assert screening.full_window is not None
    found = []
    for layer in calibration.layers:
        each = anatomy.heads // anatomy.layers[layer.layer].kv_heads
        chosen = range(anatomy.heads) if screening.heads is None else screening.heads
        widths = dict(zip(chosen, (round(2**value) for value in layer.log2_window), strict=True))
        windows = [float(widths.get(head, screening.full_window)) for head in range(anatomy.heads)]
        windows = [math.inf if window >= screening.full_window else window for window in windows]
        found += [max(windows[first : first + each]) for first in range(0, anatomy.heads, each)]
    return found
