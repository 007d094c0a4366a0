"""The checks of a model that was made from random weights: files, loading, and the equality of its presentations."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from surgery.anatomy import FAMILIES
from surgery.checkpoint import CONFIG_NAME, Checkpoint, load_config, load_json, open_checkpoint, sha256_json
from surgery.checkpoint.numbers import first_not_finite
from surgery.checkpoint.record import NEW_NAME, PLAN_NAME
from surgery.checkpoint.source import check_folder
from surgery.checkpoint.tokenizer_code import tokenizer_code
from surgery.conversion.records import record_verification
from surgery.errors import CheckpointError, UsageError
from surgery.loading import RunOptions, environment, load_model
from surgery.models.catalogue import ARCHITECTURES, own_model
from surgery.models.own_model import OwnModel
from surgery.operations.code import code_hashes
from surgery.verification.behaviour import EQUALITY_BOUND, plain_logits
from surgery.verification.checks import Check, Verification, bounded
from surgery.verification.fresh import TOKENIZER_CHECK, FreshRequest, fresh_checks
from surgery.verification.inputs import TEXT, Progress, counting, find_tokenizer, text_tokens
from surgery.verification.presentations import PADDING, PRESENTATIONS, PresentationError, presentation_differences
from surgery.version import __version__

TOKENS = 48  # of the presentations, as of a converted checkpoint


def is_new(folder: Path) -> bool:
    """Whether `surgery new` made the model in a folder, and no operation was performed on it.

    Raises:
        CheckpointError: there is no folder.
    """
    check_folder(folder)
    if (folder / PLAN_NAME).is_file() or not (folder / CONFIG_NAME).is_file():
        return False
    config = load_config(folder / CONFIG_NAME)
    if config.get("surgery") is not None:
        return False
    return (folder / NEW_NAME).is_file() or own_model(str(config.get("model_type"))) is not None


def refuse_comparison(folder: Path, *, against: object, layers: int | None, with_loss: bool) -> None:
    """Check that nothing is to be compared with a source.

    Raises:
        UsageError: something is.
    """
    asked = {"--against": against is not None, "--layers": layers is not None, "--max-loss-increase": with_loss}
    if given := [flag for flag, is_given in asked.items() if is_given]:
        raise UsageError(
            f"{given[0]}: {folder.name} was made from random weights, so it has no source",
            hint=f"Leave {given[0]} out: the other checks need no source.",
        )


def verify_new(
    folder: Path,
    *,
    files_only: bool,
    run: RunOptions,
    say: Progress | None,
    record: bool,
    name: str | None,
) -> Verification:
    """Verify a model that has no source.

    Args:
        folder: of the model.
        files_only: check the files alone; needs no torch.
        run: device and attention backend.
        say: called with a step, and its done and total amounts.
        record: write ``surgery/verify.json``.
        name: of the checkpoint, if its folder does not have this name yet.

    Raises:
        CheckpointError: the folder is broken.
    """
    say = say or (lambda *_: None)
    checkpoint = open_checkpoint(folder)
    own = own_model(str(checkpoint.config.get("model_type")))
    made = load_json(folder / NEW_NAME) if NEW_NAME in checkpoint.other_files else {}
    say("reading tensors", 0, 1)
    checks = [_parameters(checkpoint, made), _finite(checkpoint)]
    if own is not None:
        checks.append(_code(checkpoint, own))
    if not files_only:
        checks += _running_checks(checkpoint, own, run.model_copy(update={"dtype": "float32"}), say)
    verification = Verification(
        model=name or folder.name,
        against=None,
        plan_hash=sha256_json(made),
        environment={"surgery": __version__, "checked": "files alone"} if files_only else environment(),
        checks=tuple(checks),
    )
    if record:
        record_verification(folder, verification.to_dict(), in_card=False)
    return verification


def _parameters(checkpoint: Checkpoint, made: dict[str, Any]) -> Check:
    """The number of parameters is that of the sizes in ``surgery/new.json``."""
    name = "parameters"
    architecture = ARCHITECTURES.get(str(made.get("architecture")))
    if architecture is None:
        return Check(name, "skipped", f"{NEW_NAME} is missing, so the sizes that were asked for are not known")
    options = architecture.options.model_validate(made["options"])
    wanted = architecture.count_parameters(options, int(checkpoint.config["vocab_size"]))
    found = checkpoint.total_parameters
    if found != wanted:
        return Check(name, "failed", f"{found:,}; the sizes in {NEW_NAME} give {wanted:,}")
    return Check(name, "passed", f"{found:,}, as the sizes say")


def _finite(checkpoint: Checkpoint) -> Check:
    wrong = first_not_finite(checkpoint)
    if wrong is not None:
        return Check("numbers are finite", "failed", f"{wrong} has a value that is not finite")
    return Check("numbers are finite", "passed", f"{len(checkpoint.tensors)} tensors")


def _code(checkpoint: Checkpoint, own: OwnModel) -> Check:
    name = "code is this version's"
    expected = own.code()
    present = {file: checkpoint.folder / file for file in expected if file in checkpoint.other_files}
    found, wanted = code_hashes({file: path.read_bytes() for file, path in present.items()}), code_hashes(expected)
    for file in sorted(expected):
        if file not in found:
            return Check(name, "failed", f"{file} is missing")
        if found[file] != wanted[file]:
            return Check(name, "failed", f"{file} is of another version, or was changed")
    return Check(
        name, "passed", f"{len(expected)} files, {sum(one.count(bytes([10])) for one in expected.values())} lines"
    )


def _running_checks(checkpoint: Checkpoint, own: OwnModel | None, run: RunOptions, say: Progress) -> list[Check]:
    say("loading torch and transformers", 0, 1)
    folder = checkpoint.folder
    tokenizer, without = find_tokenizer(folder, run)
    tokens = text_tokens(tokenizer, TOKENS, int(checkpoint.config["vocab_size"]))
    try:
        model = load_model(folder, run)
    except CheckpointError as error:
        if run.attn_implementation is not None:
            raise  # the requested backend may be at fault, not the checkpoint
        return [Check("loads", "failed", error.message)]
    checks = [Check("loads", "passed", type(model).__name__)]
    request = FreshRequest(
        folder=folder,
        stock_class=None if own is not None else type(model).__name__,
        attn_implementation=model.config._attn_implementation,
        tokens=tokens[0].tolist(),
        text=TEXT,
        new_tensors=[],
        has_tokenizer=tokenizer is not None,
        own_code=own is not None,
        tokenizer_code=tokenizer_code(folder) is not None,
        trust_tokenizer_code=run.trust_remote_code,
        every_tensor=True,
    )
    say("loading in a fresh process", 0, 1)
    checks += fresh_checks(request, plain_logits(model, tokens), None)
    if without is not None:
        checks.append(Check(TOKENIZER_CHECK, "skipped", without))
    positions = int(checkpoint.config["max_position_embeddings"])
    presented = tokens[:, : max(positions - PADDING, 16)].to(model.device)
    family = FAMILIES.get(str(checkpoint.config.get("model_type")))
    missing = own.presentations_without if own is not None else family.breaks if family is not None else {}
    revealed: AbstractContextManager[None] = nullcontext() if own is None else own.revealed(model)
    each = counting(say, "presentation", len(PRESENTATIONS))
    try:
        with revealed:
            found = presentation_differences(model, presented, each, missing)
    except PresentationError as error:
        return [*checks, Check(f"same logits: {error.name}", "failed", error.detail)]
    for name in PRESENTATIONS:
        if name in missing:
            checks.append(Check(f"same logits: {name}", "skipped", missing[name]))
        elif name in found:
            checks.append(bounded(f"same logits: {name}", found[name], EQUALITY_BOUND, "greatest logit difference"))
    return checks
