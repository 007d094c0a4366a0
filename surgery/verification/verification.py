"""``verify``: runs the checks in order, and records them in the checkpoint and its card."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from surgery.anatomy import Family, read_anatomy
from surgery.checkpoint import Checkpoint, open_checkpoint, resolve
from surgery.checkpoint.tokenizer_code import tokenizer_code
from surgery.conversion.card import has_code
from surgery.conversion.records import read_plan, record_verification, trained_weights
from surgery.data import read_documents
from surgery.errors import CheckpointError, UsageError
from surgery.loading import RunOptions, environment, load_model, load_tokenizer, operation_modules
from surgery.verification.behaviour import (
    ablation_checks,
    identity_checks,
    own_checks,
    plain_logits,
    presentation_checks,
)
from surgery.verification.checks import SOURCE_TENSORS, Check, Verification
from surgery.verification.files import file_checks
from surgery.verification.foreign_inputs import FOREIGN, foreign_checks
from surgery.verification.fresh import TOKENIZER_CHECK, FreshRequest, fresh_checks
from surgery.verification.inputs import TEXT, Progress, counting, find_tokenizer, text_tokens
from surgery.verification.merge_record import check_operations_kept
from surgery.verification.new_model import is_new, refuse_comparison, verify_new
from surgery.verification.presentations import DECODED_TOKENS, PADDING, PRESENTATIONS, randomized
from surgery.verification.truncated import truncate
from surgery.verification.workload import ABLATION_TOKENS, FOREIGN_TOKENS, FRESH_TOKENS, LOSS_LENGTH, Repetitions
from surgery.version import __version__


def verify(
    model: str | Path,
    *,
    against: str | Path | None = None,
    revision: str | None = None,
    files_only: bool = False,
    layers: int | None = None,
    length: int | None = None,
    thorough: bool = False,
    max_loss_increase: float | None = None,
    text: Sequence[str | Path] = (),
    run: RunOptions | None = None,
    on_progress: Progress | None = None,
    record: bool = True,
    name: str | None = None,
) -> Verification:
    """Verify a converted checkpoint, or a model that `surgery new` made.

    Args:
        model: the folder.
        against: the source, folder or hub id; without it the checks that compare are skipped.
        revision: of a hub source.
        files_only: check every byte of the files and run no model; needs no torch.
        layers: check only the first N layers, so that a large model fits a small machine.
        length: tokens for the comparison with the source, limited to the positions of the model; by default 128, and
            512 if ``thorough``.
        thorough: repeat more: a longer comparison, longer rows, and every presentation of the source too. The checks
            are the same.
        max_loss_increase: nats per token by which the loss may rise over the source's on ``text``.
        text: files, folders and globs of text, for the loss.
        run: device and attention backend. Checks compute in float32 whatever the dtype of the checkpoint.
        on_progress: called with a step, and its done and total amounts.
        record: write ``surgery/verify.json`` and the card's table.
        name: of the checkpoint, if its folder does not have this name yet.

    Raises:
        PlanRefusedError: the folder was not converted by this tool.
        CheckpointError: the folder, or the source, is broken.
        UsageError: an argument is wrong.
    """
    folder = Path(model).expanduser()
    repetitions = Repetitions.choose(thorough, length)
    if repetitions.length < 16:
        raise UsageError(f"the length must be at least 16 tokens, not {length}")
    if files_only and layers is not None:
        raise UsageError(f"layers={layers} has no effect with files_only, which runs no model")
    if is_new(folder):
        refuse_comparison(folder, against=against, layers=layers, with_loss=max_loss_increase is not None)
        return verify_new(
            folder, files_only=files_only, run=run or RunOptions(), say=on_progress, record=record, name=name
        )
    check_operations_kept(folder)
    plan = read_plan(folder, check_hash=False)  # a plan that was changed is a check that fails
    _check_loss_arguments(max_loss_increase, text, against, files_only=files_only, layers=layers)
    if max_loss_increase is not None:  # so that a mistake shows before minutes of other checks
        read_documents(text)
        load_tokenizer(folder, trust_remote_code=run is not None and run.trust_remote_code)
    checkpoint = open_checkpoint(folder)
    source = open_checkpoint(resolve(against, revision)) if against is not None else None
    if source is not None:
        _check_source(source, plan, read_anatomy(checkpoint).family)
    say = on_progress or (lambda *_: None)
    checks = file_checks(checkpoint, plan, source, lambda done, total: say("comparing tensors", done, total))
    if files_only:
        ran_with = {"surgery": __version__, "checked": "files alone"}
    else:
        with ExitStack() as stack:
            if layers is not None:
                checkpoint, source = _truncated(stack, checkpoint, source, plan, layers)
            same = any(check.name == SOURCE_TENSORS and check.status == "passed" for check in checks)
            trained = None if same else trained_weights(folder)
            checks += _running_checks(checkpoint, source, plan, folder, repetitions, trained, run or RunOptions(), say)
        if max_loss_increase is not None and source is not None:
            # Only here: evaluation imports torch, which files alone do without.
            from surgery.verification.loss import loss_check

            exact = (run or RunOptions()).model_copy(update={"dtype": "float32"})
            checks.append(loss_check(folder, source.folder, text, max_loss_increase, length or LOSS_LENGTH, exact, say))
        ran_with = environment() | ({"layers": f"first {layers}"} if layers is not None else {})
    verification = Verification(
        model=name or folder.name,
        against=str(against) if against is not None and not Path(against).is_absolute() else _name(against),
        plan_hash=str(plan.get("hash")),
        environment=ran_with,
        checks=tuple(checks),
    )
    if record:
        record_verification(folder, verification.to_dict())
    return verification


def _check_source(source: Checkpoint, plan: dict[str, Any], family: Family) -> None:
    """Check that the given source is of the converted family; otherwise the call is wrong, not the checkpoint."""
    wanted = plan["source"]["model_type"]
    found = source.config.get("model_type") if family.unverified else read_anatomy(source).family.model_type
    if found != wanted:
        raise UsageError(f"--against: this source is a {found}, but a {wanted} was converted")
    own, then = (
        [str(one["name"]) for one in some] for some in (_operations(source), plan["source"].get("operations", ()))
    )
    if own != then:
        raise UsageError(
            f"--against: {source.folder.name} has {' and '.join(own) or 'no operation'}; the source that was converted "
            f"had {' and '.join(then) or 'none'}",
            hint=f"Give the source: {plan['source']['name']}.",
        )


def _operations(source: Checkpoint) -> Sequence[Mapping[str, Any]]:
    """Those in the config of a checkpoint that may be converted."""
    block = source.config.get("surgery")
    found = block.get("operations", ()) if isinstance(block, dict) else ()
    return [one for one in found if isinstance(one, dict) and "name" in one]


def _check_loss_arguments(
    most: float | None, text: Sequence[str | Path], against: object, *, files_only: bool, layers: int | None
) -> None:
    if most is None:
        if text:
            raise UsageError(
                "texts have no effect without a loss limit", hint="Pass --max-loss-increase, for example 0.01."
            )
        return
    for wrong, what in (
        (against is None, "needs the source: pass --against"),
        (not text, "needs texts to measure on: pass --text"),
        (files_only, "cannot be combined with --files-only, which runs no model"),
        (layers is not None, "cannot be combined with --layers: it measures the whole model"),
        (not math.isfinite(most), "must be a number"),
    ):
        if wrong:
            raise UsageError(f"--max-loss-increase {most:g}: {what}")


def _name(path: str | Path | None) -> str | None:
    return None if path is None else Path(path).name


def _truncated(
    stack: ExitStack, checkpoint: Checkpoint, source: Checkpoint | None, plan: dict[str, Any], layers: int
) -> tuple[Checkpoint, Checkpoint | None]:
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="surgery-layers-")))
    anatomy = read_anatomy(checkpoint)
    if not 1 <= layers <= len(anatomy.layers):
        raise UsageError(f"--layers {layers}: the model has {len(anatomy.layers)} layers")
    operated = {layer for options in plan["operations"] for layer in options["layers"]}
    if not any(layer < layers for layer in operated):
        raise UsageError(f"--layers {layers}: no operation is on these layers; the first is on layer {min(operated)}")
    truncate(checkpoint, anatomy, layers, scratch / "converted")
    if source is not None:
        own = read_anatomy(source, family=anatomy.family if anatomy.family.unverified else None)
        truncate(source, own, layers, scratch / "source")
        source = open_checkpoint(scratch / "source")
    return open_checkpoint(scratch / "converted"), source


def _running_checks(
    checkpoint: Checkpoint,
    source: Checkpoint | None,
    plan: dict[str, Any],
    folder: Path,
    repetitions: Repetitions,
    trained: str | None,
    run: RunOptions,
    say: Progress,
) -> list[Check]:
    say("loading torch and transformers", 0, 1)
    import torch

    from surgery.loading.model import check_runs

    check_runs(checkpoint.folder)  # an error here is no fault of the checkpoint

    run = run.model_copy(update={"dtype": "float32"})
    tokenizer, without = find_tokenizer(folder, run)
    anatomy = read_anatomy(checkpoint)
    vocabulary = int(anatomy.family.value(checkpoint.config, "vocab_size"))
    tokens = text_tokens(tokenizer, min(repetitions.length, anatomy.positions), vocabulary)
    source_logits = None
    if source is not None:
        say("running the source", 0, 1)
        source_model = load_model(source.folder, run)
        source_logits = plain_logits(source_model, tokens)
        del source_model
    say("running the converted model", 0, 1)
    try:
        model = load_model(checkpoint.folder, run)
    except CheckpointError as error:
        if run.attn_implementation is not None:
            raise  # the requested backend may be at fault, not the checkpoint
        return [Check("loads", "failed", error.message)]
    checks = [Check("loads", "passed", type(model).__name__)]
    reference_tokens = None
    if tokenizer is not None and source is not None:
        reference = load_tokenizer(source.folder, trust_remote_code=run.trust_remote_code)
        reference_tokens = reference(TEXT)["input_ids"]
    # By the model's own names: some families' tensors have others on disk.
    new_tensors = [
        f"{path}.{name}" for path, module in operation_modules(model).items() for name, _ in module.named_parameters()
    ]
    request = FreshRequest(
        folder=checkpoint.folder,
        stock_class=str(plan["source"]["architecture"]),
        attn_implementation=model.config._attn_implementation,
        tokens=tokens[0, :FRESH_TOKENS].tolist(),
        text=TEXT,
        new_tensors=new_tensors,
        has_tokenizer=tokenizer is not None,
        own_code=has_code(plan),
        tokenizer_code=tokenizer_code(folder) is not None,
        trust_tokenizer_code=run.trust_remote_code,
    )
    say("loading in a fresh process", 0, 1)
    checks += fresh_checks(request, plain_logits(model, tokens[:, :FRESH_TOKENS]), reference_tokens)
    if without is not None:
        checks.append(Check(TOKENIZER_CHECK, "skipped", without))
    say("comparing with the source", 0, 1)
    checks += identity_checks(model, tokens, source_logits, plan, trained, repetitions.length)
    checks += own_checks(model, tokens[:, :FRESH_TOKENS], plan, anatomy)
    device_tokens = tokens.to(model.device)
    with torch.no_grad():
        rounds = 3 if repetitions.measures_source else 2
        each = counting(say, "n", rounds * len(PRESENTATIONS) + len(FOREIGN))
        room = max(anatomy.positions - PADDING, 2 * DECODED_TOKENS)
        presented = device_tokens[:, : min(repetitions.presented, room)]
        checks += presentation_checks(
            model, presented, anatomy.family.breaks, each, measures_source=repetitions.measures_source
        )
        with randomized(model):
            checks += foreign_checks(model, presented[:, :FOREIGN_TOKENS], each)
        each = counting(say, "ablation", len(operation_modules(model)))
        checks += ablation_checks(model, device_tokens[:, :ABLATION_TOKENS], plan, each)
    return checks
