"""``sweep``: choices of thresholds and windows for several allowed losses, from one observation.

A calibration finds one choice. A sweep shows several: for each allowed loss, the share of rejected keys and the loss
measured on other text. Each point is a calibration that `convert --calibration` accepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.anatomy import Anatomy, read_anatomy
from surgery.checkpoint import open_checkpoint, resolve
from surgery.data import read_documents
from surgery.errors import PlanRefusedError, UsageError
from surgery.evaluation.held_out_passages import cut_from_start, divide, short_names
from surgery.loading import RunOptions, load_tokenizer
from surgery.loading.precision import settled
from surgery.operations.inspection import converted_already, unverified_family
from surgery.operations.screening.calibration.calibration import resolved_options
from surgery.operations.screening.calibration.calibrator import Calibrator, OnProgress
from surgery.operations.screening.calibration.results import Calibration, GuardedPassage, Trial
from surgery.operations.screening.calibration_settings import ALLOWED, CalibrationSettings
from surgery.operations.screening.savings import savings
from surgery.operations.screening.settings_check import check_settings, recorded
from surgery.result_table import ResultTable, ShownAsTable

if TYPE_CHECKING:
    from surgery.reporting.pictures import Pictures


@dataclass(frozen=True)
class LengthResult:
    """Results of a point on the measured passages of one length: means, and the passage with the largest increase.

    ``cache`` and ``blocks`` are those of `Saving`.
    """

    tokens: int
    passages: int
    rejected: float
    cache: float
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
        saved: share of what the settings save: of the keys, of the cache or of the time of attention.
        lengths: measured results by length.
        calibration: the choice, for `convert --calibration`; its guard has every measured passage.
    """

    allowed: float
    price: float
    estimated: float
    observed: float
    saved: float
    lengths: tuple[LengthResult, ...]
    calibration: Calibration

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the values of every head."""
        plain = {name: getattr(self, name) for name in ("allowed", "price", "estimated", "observed", "saved")}
        return {
            **plain,
            "lengths": [asdict(length) for length in self.lengths],
            "savings": [dict(saving) for saving in self.calibration.saved],
            "passages": [{**asdict(text), "change": text.change} for text in self.calibration.guard],
            "calibration_sha256": self.calibration.hash,
        }


@dataclass(frozen=True)
class Sweep(ShownAsTable):
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

    def to_table(self) -> ResultTable:
        """One row for each point and length."""
        columns = ("allowed", "saved", "tokens", "keys rejected", "cache kept", "blocks skipped", "change", "worst")
        rows = tuple(
            (point.allowed, point.saved, at.tokens, at.rejected, at.cache, at.blocks, at.change, at.worst)
            for point in self.points
            for at in point.lengths
        )
        where = "other text" if self.other_text else "held-out text"
        return ResultTable(f"{self.model}: loss against what is saved, on {where}", columns, rows)

    def plot(self) -> Pictures:
        """Loss by what is saved."""
        from surgery.reporting.pictures import Picture, Pictures
        from surgery.reporting.sweep import draw_sweep

        image = draw_sweep(self.to_dict())["sweep.png"]
        return Pictures((Picture("sweep", self.to_table().title, "Change of the loss by the share saved", image),))

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
    settings = (settings or CalibrationSettings()).suited(str((options or {}).get("form")))
    check_settings(settings, options or {})
    source = resolve(model, revision)
    run = settled(run or RunOptions(), [source.folder])
    checkpoint = open_checkpoint(source)
    anatomy = read_anatomy(checkpoint, family=unverified_family(checkpoint) if allow_unverified else None)
    if reason := converted_already(anatomy):
        raise PlanRefusedError(
            f"this checkpoint was {reason}, so the result of a sweep could not be applied to it",
            hint="Sweep its source, which `surgery revert` restores.",
        )
    screening = resolved_options(options or {}, anatomy)
    lengths = settings.known_lengths(anatomy)
    tokenizer = load_tokenizer(source.folder, trust_remote_code=run.trust_remote_code)
    documents = short_names(read_documents(text))
    passages = divide(documents, tokenizer, lengths, observe=settings.observe, hold_out=settings.hold_out)
    measured = passages.held_out
    if measure_on:
        measured = cut_from_start(short_names(read_documents(measure_on)), tokenizer, lengths, settings.hold_out)

    from surgery.loading.operated import open_model
    from surgery.operations.screening.calibration.choice import price_for
    from surgery.operations.screening.calibration.guard import HeldOutLoss, head_values, set_values

    calibrator = Calibrator(
        open_model(source.folder, anatomy, [screening.resolved()], run), screening, anatomy, settings, on_progress
    )
    effects, grid = calibrator.observe(passages.observed)
    chooser = calibrator.chooser(effects)
    guard = HeldOutLoss(calibrator.model, measured, calibrator.report)
    calibrator.total += (len(allowed) + 1) * guard.tokens
    kept = {**recorded(settings, lengths, screening), "max_loss_increase": None}
    points = []
    for limit in sorted(set(allowed)):
        price = price_for(chooser, limit)
        choice = chooser(price)
        set_values(calibrator.model, head_values(choice, grid, settings.softness), screening.heads)
        found = guard.measure()
        worst = max(text.change for text in found)
        layers = calibrator.layers(choice, effects, grid)
        calibration = Calibration(
            model=source.name,
            commit=source.commit,
            settings=kept,
            texts=passages.texts,
            layers=layers,
            guard=tuple(found),
            trials=(Trial(price, choice.rejected, choice.loss_increase, worst),),
            warnings=("a point of a sweep, which no guard checked",),
            saved=savings(layers, anatomy, kept),
            estimated=choice.loss_increase,
        )
        measures = by_length(found, calibration, anatomy)
        points.append(
            SweepPoint(limit, price, choice.loss_increase, choice.rejected, choice.saved, measures, calibration)
        )
    return Sweep(source.name, source.commit, kept, passages.texts, bool(measure_on), tuple(points))


def by_length(
    measured: Sequence[GuardedPassage], calibration: Calibration, anatomy: Anatomy
) -> tuple[LengthResult, ...]:
    """Means over the passages of each length."""
    found = []
    for tokens in sorted({text.tokens for text in measured}):
        own = [text for text in measured if text.tokens == tokens]
        worst = max(own, key=lambda text: text.change)
        rejected = sum(text.rejected for text in own) / len(own)
        change = sum(text.change for text in own) / len(own)
        (saved,) = savings(calibration.layers, anatomy, calibration.settings, (tokens,))
        of_windows = saved["cache"], saved["blocks"]
        found.append(LengthResult(tokens, len(own), rejected, *of_windows, change, worst.change, worst.text))
    return tuple(found)
