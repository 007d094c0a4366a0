"""Merge a LoRA adapter into the weights of its base, and check the logits before the output appears."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.anatomy import read_anatomy
from surgery.checkpoint import (
    Checkpoint,
    Source,
    StagedFolder,
    check_output,
    load_json,
    open_checkpoint,
    resolve,
    sha256_file,
    sha256_json,
)
from surgery.checkpoint.record import HISTORY_NAME, PLAN_NAME
from surgery.conversion.records import read_history, read_plan
from surgery.errors import CheckpointError, PlanRefusedError, UsageError
from surgery.operations.parameters import is_operation
from surgery.recovery.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_RECORD, base_identity
from surgery.recovery.logit_comparison import (
    MergeResult,
    MergeSteps,
    OnProgress,
    compare_logits,
    logits_of,
    probe_tokens,
    tolerance_of,
)
from surgery.recovery.lora import quiet_peft
from surgery.recovery.plain_checkpoint import Merged, all_dropped, operations_without_effect, write_plain
from surgery.recovery.result_folder import Record, changed_tensors, plan_space, write_result
from surgery.version import __version__

_TIED = ("lm_head", "embed_tokens", "embed_in", "embed_out", "wte")

# Keys of adapter_config.json with which a merged checkpoint could not be the same model.
_UNMERGEABLE = {
    "layer_replication": "the merged model would have other layers than its base",
    "alora_invocation_tokens": "the adapter acts only on tokens after its invocation, merged weights on all tokens",
}


def merge_adapter(
    folder: Path,
    *,
    output: str | Path,
    base: str | Path | None = None,
    force: bool = False,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> MergeResult:
    """Add a LoRA adapter, with the parameters of operations in it, to its base and write a full checkpoint.

    Where no operation of the base changes anything, all are dropped, and the result is of the source's own class.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        output: folder for the result, in the format and dtypes of the base.
        base: folder or hub id; by default the base that the adapter names.
        force: replace an earlier output of this tool.
        device: for the comparison.
        on_progress: called with finished steps, all steps, and the step that begins.

    Raises:
        UsageError: the folder is no adapter, or the base is not found.
        CheckpointError: the adapter was trained on another base or does not fit.
        PlanRefusedError: the adapter is of another kind, or changes tied weights.
        VerificationError: the merged model has other logits; nothing was written.
    """
    config = _adapter_config(folder)
    source = _base(folder, config, base)
    checkpoint = open_checkpoint(source)
    for read in (folder, source.folder):
        target = check_output(Path(output), force=force, source=read)
    _check(folder, config, checkpoint)
    plan_space(checkpoint, target)
    from surgery.loading import RunOptions, load_model

    step = MergeSteps(on_progress)
    step("loading the base")
    options = RunOptions(device=device, dtype="float32")
    model = load_model(source.folder, options)
    rows = config.get("trainable_token_indices") or []
    tokens = probe_tokens(
        checkpoint, [row for part in (rows.values() if isinstance(rows, dict) else [rows]) for row in part]
    )
    step("running it with the adapter, and merging")
    expected, merged, names = _merged(model, folder, tokens)
    tolerance = tolerance_of(checkpoint)
    found: list[float] = []

    def verify(staged: Path) -> None:
        step("running the merged model, to compare")
        again = load_model(staged, options)
        found.append(
            compare_logits(again, tokens, expected, tolerance, "Load the adapter with PEFT on its base instead")
        )

    step("writing")
    changed, record = changed_tensors(merged, names), _record(folder, names)
    dropped = _dropped(checkpoint, changed)
    if dropped:
        weights = {name: tensor for name, tensor in changed.items() if not is_operation(name)}
        plain = Merged(read_plan(source.folder), weights, dropped, [*read_history(source.folder), dict(record.entry)])
        with StagedFolder(target, force=force, source=source.folder) as staged:
            write_plain(checkpoint, plain, staged.path)
            verify(staged.path)
            staged.commit()
    else:
        write_result(checkpoint, target, changed, record, force=force, verify=verify)
    operations = [name for name in names if is_operation(name)]
    return MergeResult(target, source.name, len(names), len(operations), found[0], tolerance, dropped)


def _dropped(checkpoint: Checkpoint, changed: Mapping[str, Any]) -> tuple[str, ...]:
    """The operations of the base that the result need not have: all that have code, or none.

    Args:
        checkpoint: the base.
        changed: tensors that the merge changed, by name.
    """
    if not (checkpoint.folder / PLAN_NAME).is_file():
        return ()  # the base has no operation, or no record of its source
    anatomy = read_anatomy(checkpoint)
    dropped = operations_without_effect(checkpoint, anatomy, changed)
    if not all_dropped(anatomy, dropped) or read_plan(checkpoint.folder)["source"]["operations"]:
        return ()
    return dropped


def _adapter_config(folder: Path) -> dict[str, Any]:
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UsageError(
            f"{folder.name} is not an adapter: {ADAPTER_CONFIG} is missing",
            hint="Pass the folder that PEFT or `surgery finetune` wrote, such as OUT/adapter, or a converted "
            "checkpoint whose learned parameters are constants.",
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder.name}: {ADAPTER_WEIGHTS} is missing", hint="Save the adapter in safetensors format."
        )
    config = load_json(folder / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise PlanRefusedError(
            f"{folder.name} is an adapter of type {config.get('peft_type')!r}; only LORA can be merged"
        )
    for key, reason in _UNMERGEABLE.items():
        if config.get(key):
            raise PlanRefusedError(
                f"{folder.name} sets {key}: {reason}", hint="Load the adapter with PEFT on its base instead."
            )
    return config


def _base(folder: Path, config: dict[str, Any], base: str | Path | None) -> Source:
    named = base if base is not None else _recorded_base(folder) or config.get("base_model_name_or_path")
    if not isinstance(named, str | Path) or not str(named):
        raise UsageError("the adapter names no base model", hint="Pass --base MODEL.")
    try:
        return resolve(named)
    except (UsageError, CheckpointError) as error:
        if base is not None:
            raise
        raise UsageError(
            f"{folder.name} names the base {str(named)!r}, which was not found: {error.message}",
            hint=_hint_without_base(folder),
        ) from error


def _hint_without_base(folder: Path) -> str:
    """What else there is: a training that merges its adapter keeps a copy of it beside the merged weights."""
    trained = folder.resolve().parent
    entries = read_history(trained) if (trained / HISTORY_NAME).is_file() else []
    if not any(entry.get("adapter") == folder.name and entry.get("merged") for entry in entries):
        return "Pass --base MODEL."
    return f"The weights of {trained.name} hold this adapter already: `surgery merge {trained.name}`. Or pass --base."


def _recorded_base(folder: Path) -> Path | None:
    """The folder of the base that an adapter of this tool records; None if it is missing."""
    path = load_json(folder / BASE_RECORD).get("path") if (folder / BASE_RECORD).is_file() else None
    found = folder / path if isinstance(path, str) else None
    return found if found is not None and found.is_dir() else None


def _check(folder: Path, config: dict[str, Any], checkpoint: Checkpoint) -> None:
    record = folder / BASE_RECORD
    if record.is_file():
        known = load_json(record)
        if known.get("sha256") != base_identity(checkpoint):
            raise CheckpointError(
                f"the adapter was trained on another base than {checkpoint.folder.name}: "
                f"on {known.get('name')!r}, whose config, tensors or learned parameters differ",
                hint="Pass the base of the training: --base MODEL.",
            )
    targets = [*_names(config.get("target_modules")), *_names(config.get("modules_to_save"))]
    tied = [name for name in targets if name.rpartition(".")[2] in _TIED]
    if checkpoint.config.get("tie_word_embeddings") and tied:
        raise PlanRefusedError(
            f"the adapter changes {tied[0]}, whose weights this model shares between embeddings and head: merging "
            "would change both",
            hint="Load the adapter with PEFT on its base instead.",
        )


def _names(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(item) for item in value or []]


def _merged(model: Any, folder: Path, tokens: Any) -> tuple[Any, Any, list[str]]:
    """Logits of the base with adapter, the merged model, and the names of the parameters that the merge changed.

    Every parameter is compared with the base, because PEFT changes more than the modules with LoRA (rows of tokens,
    biases, saved modules), differently in each version.
    """
    import torch
    from peft import PeftModel

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    try:
        with quiet_peft():
            adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the adapter does not fit the base: {str(error).splitlines()[0]}",
            hint="Pass the base of the training: --base MODEL.",
        ) from error
    expected = logits_of(adapted, tokens)
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise PlanRefusedError(
            f"PEFT cannot merge this adapter: {str(error).splitlines()[0]}",
            hint="Load the adapter with PEFT on its base instead.",
        ) from error
    after = dict(merged.named_parameters())
    if odd := sorted(after.keys() ^ before.keys()):
        raise PlanRefusedError(
            f"the merged model has other parameters than its base, such as {odd[0]}, which the checkpoint cannot hold",
            hint="Load the adapter with PEFT on its base instead.",
        )
    return expected, merged, [name for name, own in after.items() if not torch.equal(before[name], own)]


def _record(folder: Path, names: list[str]) -> Record:
    config, own = folder / ADAPTER_CONFIG, [is_operation(name) for name in names]
    return Record(
        entry={
            "step": "merge",
            "version": __version__,
            "label": "merge",
            "trained": "scale" if all(own) else "scale+lora" if any(own) else "lora",
            "adapter_sha256": sha256_json([sha256_file(config), sha256_file(folder / ADAPTER_WEIGHTS)]),
            "weights_changed": not all(own),
        }
    )
