"""``calibrate``: observe texts, then try choices until the held-out loss rises by no more than allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surgery.anatomy import Anatomy, Family, read_anatomy
from surgery.checkpoint import open_checkpoint, resolve
from surgery.data import read_documents
from surgery.evaluation.held_out_passages import divide, short_names
from surgery.loading import RunOptions, load_tokenizer
from surgery.loading.precision import settled
from surgery.operations import OPERATIONS, OperationOptions
from surgery.operations.screening import ScreeningOptions
from surgery.operations.screening.calibration.calibrator import Calibrator, OnProgress
from surgery.operations.screening.calibration.results import Calibration, Trial
from surgery.operations.screening.calibration_settings import CalibrationSettings
from surgery.operations.screening.savings import savings
from surgery.operations.screening.settings_check import check_settings, recorded
from surgery.words import counted


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
        text: files, folders and globs of UTF-8 text; with several kinds of text the choice holds for other texts too.
        options: of the operation ``screening``: layers, heads, sinks, full_window.
        before: resolved options of the other operations of the plan, which are on during the calibration.
        settings: allowed loss, lengths, and amount of text.
        revision: branch, tag or commit of a hub model.
        run: device, dtype and attention backend.
        on_progress: called with finished work and all work, in tokens of a forward pass, and the current step in words.
        family: the row of a probe, for a family that is not in the table.

    Raises:
        UsageError: no text, or too little of it.
        PlanRefusedError: screening cannot be applied to this model.
        SurgeryError: no choice keeps the loss, even if it rejects almost nothing.
    """
    settings = (settings or CalibrationSettings()).suited(str((options or {}).get("form")))
    check_settings(settings, options or {})
    source = resolve(model, revision)
    run = settled(run or RunOptions(), [source.folder])
    anatomy = read_anatomy(open_checkpoint(source), family=family)
    screening = resolved_options(options or {}, anatomy)
    lengths = settings.known_lengths(anatomy)
    tokenizer = load_tokenizer(source.folder, trust_remote_code=run.trust_remote_code)
    documents = short_names(read_documents([text] if isinstance(text, str | Path) else text))
    passages = divide(documents, tokenizer, lengths, observe=settings.observe, hold_out=settings.hold_out)

    from surgery.loading.operated import open_model

    # A unit is observed at the start of its bridge, where it equals the source.
    exponent = screening.renormalisation
    opened = screening if exponent is None else screening.model_copy(update={"renormalisation": 1.0})
    loaded = open_model(source.folder, anatomy, [*before, opened.resolved()], run)
    calibrator = Calibrator(loaded, screening, anatomy, settings, on_progress)
    trials: list[Trial] = []
    warnings = []
    estimated = None
    if exponent is not None and exponent < 1:
        layers, guard = calibrator.fit_units(passages.observed, passages.held_out)
        warnings.append(
            f"a unit does not start as the identity: the held-out loss rises by up to "
            f"{max(text.change for text in guard):+.4f} before it is distilled"
        )
    else:
        effects, grid = calibrator.observe(passages.observed)
        choice, guard, trials = calibrator.choose(effects, grid, passages.held_out)
        layers = calibrator.layers(choice, effects, grid)
        estimated = choice.loss_increase
        if exponent is not None:
            layers = calibrator.with_gains(layers, passages.observed)
    if len(documents) < 3:
        warnings.append(
            f"only {counted(len(documents), 'text')}: thresholds that hold on one kind of text may fail on another; "
            "give several"
        )
    if len({passage.document for passage in passages.held_out}) < 3:
        warnings.append(
            "held-out passages come from fewer than 3 texts: on others the loss may rise by more than the guard allowed"
        )
    longest = max(anatomy.trained_length, settings.context or 0)
    if max(lengths) < longest:
        warnings.append(f"calibrated at up to {max(lengths)} tokens; longer texts were not measured")
    return Calibration(
        model=source.name,
        commit=source.commit,
        settings=(kept := recorded(settings, lengths, screening, before)),
        texts=passages.texts,
        layers=layers,
        guard=tuple(guard),
        trials=tuple(trials),
        warnings=tuple(warnings),
        saved=savings(layers, anatomy, kept),
        estimated=estimated,
    )


def resolved_options(options: Mapping[str, Any], anatomy: Anatomy) -> ScreeningOptions:
    """Resolved options of open screening, with which a calibration starts."""
    operation = OPERATIONS["screening"]
    operation.check_family(anatomy.family)
    given = {**options, "name": "screening", "open": True}
    resolved: OperationOptions = operation.resolve(ScreeningOptions.model_validate(given), anatomy)
    assert isinstance(resolved, ScreeningOptions)
    return resolved
