"""Merge into the weights what was learned beside them: a LoRA adapter, or an operation's constants."""

from __future__ import annotations

from pathlib import Path

from surgery.checkpoint import CONFIG_NAME
from surgery.checkpoint.record import MERGE_NAME, PLAN_NAME
from surgery.checkpoint.source import check_folder
from surgery.conversion.external_save import is_saved_externally
from surgery.errors import PlanRefusedError, UsageError
from surgery.recovery.adapter import ADAPTER_CONFIG
from surgery.recovery.logit_comparison import MergeResult, OnProgress


def merge(
    model: str | Path,
    *,
    output: str | Path,
    base: str | Path | None = None,
    force: bool = False,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> MergeResult:
    """Write a full checkpoint in which the weights hold what was learned beside them.

    A LoRA adapter is added to its base, with the parameters of operations in it. A converted checkpoint whose learned
    parameters are constants (SSMax's form ``constant``) becomes a checkpoint of the source's own class, which needs
    no code. An operation whose learned parameters change nothing is dropped.

    Args:
        model: folder of an adapter, or of a converted checkpoint.
        output: folder for the result, in the dtypes of the base.
        base: of an adapter: folder or hub id; by default the base that the adapter names.
        force: replace an earlier output of this tool.
        device: for the comparison.
        on_progress: called with finished steps, all steps, and the step that begins, in words.

    Raises:
        UsageError: the folder is no adapter, or the base is not found.
        CheckpointError: the folder is missing, or the adapter was trained on another base or does not fit.
        PlanRefusedError: the weights cannot hold what was learned.
        VerificationError: the merged model has other logits; nothing was written.
    """
    folder = Path(model).expanduser()
    check_folder(folder)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if not (folder / PLAN_NAME).is_file() and (is_adapter or not is_saved_externally(folder)):
        if (folder / CONFIG_NAME).is_file() and not is_adapter:
            made = " (a merge wrote it)" if (folder / MERGE_NAME).is_file() else ""
            raise PlanRefusedError(
                f"{folder.name} is a model without an operation or adapter{made}: nothing is there to merge",
                hint=f"Convert it first: `surgery inspect {model}` says how.",
            )
        from surgery.recovery.adapter_merge import merge_adapter

        return merge_adapter(folder, output=output, base=base, force=force, device=device, on_progress=on_progress)
    if base is not None:
        raise UsageError("--base is for adapters", hint="Leave it out: a converted checkpoint has its own weights.")
    from surgery.recovery.constant_merge import merge_constants

    return merge_constants(folder, output=Path(output), force=force, device=device, on_progress=on_progress)
