"""``calibrate``: choose the numbers of SSMax on haystacks, within a bound on the loss of held-out text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surgery.anatomy import Anatomy, Family, read_anatomy
from surgery.checkpoint import open_checkpoint, resolve, sha256_json
from surgery.data import read_documents
from surgery.evaluation.held_out_passages import short_names
from surgery.loading import RunOptions, load_tokenizer
from surgery.loading.precision import settled
from surgery.operations import OPERATIONS
from surgery.operations.ssmax.calibration.calibrator import OnProgress, StepCalibrator
from surgery.operations.ssmax.calibration.results import SSMaxCalibration
from surgery.operations.ssmax.calibration.texts import divide_texts, draw_haystacks
from surgery.operations.ssmax.calibration_settings import SSMaxCalibrationSettings
from surgery.operations.ssmax.options import CALIBRATED, SSMaxOptions, check_can_calibrate
from surgery.words import counted


def calibrate(
    model: str | Path,
    text: Sequence[str | Path],
    *,
    options: Mapping[str, Any] | None = None,
    before: Sequence[Mapping[str, Any]] = (),
    settings: SSMaxCalibrationSettings | None = None,
    revision: str | None = None,
    run: RunOptions | None = None,
    on_progress: OnProgress | None = None,
    family: Family | None = None,
    work: Path | None = None,
) -> SSMaxCalibration:
    """Choose the numbers of SSMax so that a model finds facts in its context, without a training run.

    Args:
        model: a folder or hub id that was not converted.
        text: files, folders and globs of UTF-8 text: facts are hidden in it, and its last third is held out.
        options: of the operation ``ssmax``: form, outputs, N, layers, heads.
        before: resolved options of the other operations of the plan, which are on during the calibration.
        settings: allowed loss, lengths, and amount of text.
        revision: branch, tag or commit of a hub model.
        run: device, dtype and attention backend.
        on_progress: called with finished work and all work, in tokens of a forward pass, and the current step in words.
        family: the row of a probe, for a family that is not in the table.
        work: folder that keeps finished gradients: an interrupted calibration goes on there, and the first step of
            another form takes them from it.

    Raises:
        UsageError: no text, or too little of it.
        PlanRefusedError: SSMax cannot be applied to this model, or the form has nothing to calibrate.
        SurgeryError: no choice keeps the loss, or none makes the answers likelier.
    """
    settings = settings or SSMaxCalibrationSettings()
    source = resolve(model, revision)
    run = settled(run or RunOptions(), [source.folder])
    checkpoint = open_checkpoint(source)
    anatomy = read_anatomy(checkpoint, family=family)
    ssmax = resolved_options(options or {}, anatomy)
    lengths = settings.known_lengths(anatomy)
    tokenizer = load_tokenizer(source.folder, trust_remote_code=run.trust_remote_code)
    documents = short_names(read_documents([text] if isinstance(text, str | Path) else text))
    texts = divide_texts(documents, tokenizer, lengths, settings)
    haystacks = [
        draw_haystacks(texts.pieces, tokenizer, max(lengths), settings.haystacks, seed=f"{settings.seed}/{number}")
        for number in range(settings.rounds)
    ]

    from surgery.loading.operated import open_model
    from surgery.operations.ssmax.calibration.guard import HeldOutGuard
    from surgery.operations.ssmax.calibration.store import GradientStore

    # Every form is a case of b + s ln n and g, whose gradients serve them all.
    everything = SSMaxOptions(form="bias", outputs="gain", heads=ssmax.heads)
    open_options = everything.model_copy(update={"layers": ssmax.layers, "start": dict(everything.identity or {})})
    loaded = open_model(source.folder, anatomy, [*before, open_options.resolved()], run)
    subject = [
        {path.name: _state(path) for path in sorted(source.folder.glob("*.safetensors"))},
        sha256_json(checkpoint.config),
        source.commit or source.folder.resolve().as_posix(),
        [loaded.device.type, str(loaded.dtype), run.attn_implementation],
        list(before),
        [ssmax.layers, ssmax.heads],
    ]
    store = GradientStore(work, subject)
    calibrator = StepCalibrator(loaded, ssmax, settings, store, on_progress)
    guard = HeldOutGuard(loaded, texts.passages, texts.haystacks, calibrator.report)
    numbers, measured = calibrator.run(haystacks, guard)
    return SSMaxCalibration(
        model=source.name,
        commit=source.commit,
        settings={
            **settings.model_dump(mode="json"),
            "lengths": list(lengths),
            "form": ssmax.form,
            "outputs": ssmax.outputs,
            "reference_length": ssmax.reference_length,
            "heads": None if ssmax.heads is None else list(ssmax.heads),
            "before": [str(other["name"]) for other in before],
        },
        texts=tuple(document.name for document in documents),
        layers=calibrator.layers(numbers),
        rounds=tuple(calibrator.rounds),
        guard=measured.passages,
        recall=measured.recall,
        trials=tuple(calibrator.trials),
        warnings=_warnings(len(documents), lengths, anatomy),
    )


def resolved_options(options: Mapping[str, Any], anatomy: Anatomy) -> SSMaxOptions:
    """Resolved options of SSMax at its identity, with which a calibration starts.

    Raises:
        PlanRefusedError: the form has no identity to start from, or no parameter.
    """
    operation = OPERATIONS["ssmax"]
    operation.check_family(anatomy.family)
    given = SSMaxOptions.model_validate({**CALIBRATED, **options, "name": "ssmax"})
    check_can_calibrate(given)
    resolved = operation.resolve(given, anatomy)
    assert isinstance(resolved, SSMaxOptions)
    return resolved


def _state(path: Path) -> list[int]:
    """Size and time of the last change of a file; weights that are written again have another time."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _warnings(documents: int, lengths: Sequence[int], anatomy: Anatomy) -> tuple[str, ...]:
    found = []
    if documents < 3:
        found.append(
            f"only {counted(documents, 'text')}: numbers that hold on one kind of text may cost others; give several"
        )
    if max(lengths) < anatomy.trained_length:
        found.append(f"calibrated at up to {max(lengths)} tokens; longer texts were not measured")
    return tuple(found)
