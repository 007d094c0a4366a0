"""A recovery run from recipe to trained checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from surgery.checkpoint import check_output, open_checkpoint, resolve
from surgery.checkpoint.disk import check_writable
from surgery.data.chat import encode_chat
from surgery.data.offsets import Offsets, offsets_of
from surgery.errors import UsageError
from surgery.loading.model import check_attention
from surgery.loading.run_options import check_device, pick_device
from surgery.recovery.checks import check_objective, check_sections
from surgery.recovery.control_plan import plan_controls
from surgery.recovery.controls import check_control
from surgery.recovery.converted import plan_operations, planned_checkpoint
from surgery.recovery.layout import Layout
from surgery.recovery.model_run import RunSetup
from surgery.recovery.parameters import trained_names
from surgery.recovery.plan import make_plan
from surgery.recovery.quantized import check_quantized
from surgery.recovery.recipe import Recipe
from surgery.recovery.recipe_file import read_recipe
from surgery.recovery.recovery_run import RecoveryRun
from surgery.recovery.result import FinetuneResult
from surgery.recovery.teacher_choice import kept_operations
from surgery.training.dataset import Encode, EncodeChat, OnDocuments, TrainingData, read_data
from surgery.training.folder import TrainingFolder
from surgery.training.processes import is_first, leave_at_exit, process_count
from surgery.training.sharding import own_sharding

OnProgress = Callable[[dict[str, Any]], None]
PLACEHOLDER = "path/to/"
# Seconds between two events while text is read.
_EVENTS_APART = 0.5


def finetune(
    recipe: str | Path | Recipe | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    dry_run: bool = False,
    measure: bool = False,
    force: bool = False,
    device: str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    on_progress: OnProgress | None = None,
) -> FinetuneResult:
    """Run a recipe and write the result as a full checkpoint.

    During the run, all files are in ``<output>.training``; the output appears complete, at the end. Ctrl-C or SIGTERM
    finishes the step and saves a checkpoint; a second one stops at once.

    Args:
        recipe: a YAML file, or a recipe in Python.
        overrides: ``a.b=c`` each, as ``--set``.
        resume: continue the interrupted run exactly: the same steps, losses and weights.
        dry_run: read the text and plan only; weights are not read and torch is not imported.
        measure: with ``dry_run``, load the model and run a trial step of each stage, to estimate time and memory.
        force: discard an interrupted run, and replace an earlier output of this tool.
        device: auto, cpu, cuda or mps.
        attn_implementation: attention backend; by default transformers' choice.
        trust_remote_code: run code that the model's folder brings for its tokenizer.
        on_progress: called with each event, a dictionary whose ``event`` is reading, tokenizing, plan, sharding,
            teacher, trial, held_out, evaluation, step, checkpoint, control, stopping, writing or done. A signal gives
            stopping at once, in its handler, but never within another call.

    Raises:
        RecipeError: the recipe is not valid; every fault is listed.
        UsageError: no text, an output that exists, nothing to resume, an unknown device, FSDP settings that are not
            available.
        CheckpointError: the model is missing or broken, or the disk is too small.
        PlanRefusedError: the model was not converted and the recipe does not pretrain, or no parameter is trained.
        DivergedError: the loss or gradient is no longer finite; the last good checkpoint is kept.
        TrainingStoppedError: interrupted, with a checkpoint to resume from.
    """
    valid = read_recipe(recipe, overrides)
    _check_placeholders(valid)
    source = resolve(valid.model)
    conversion = plan_operations(valid)
    checkpoint = open_checkpoint(source) if conversion is None else planned_checkpoint(conversion)
    layout = Layout(checkpoint.config, needs_operations=valid.needs_operations)
    # Before reading the text, which takes longer.
    for stage in valid.stage_recipes():
        trained_names(stage, layout, checkpoint.tensors)
        check_objective(stage, layout)
        check_sections(stage, layout)
        check_quantized(stage, checkpoint.config)
    kept_operations(valid.stage_recipes(), layout)
    for control in valid.controls:
        check_control(control, layout)
    controls = plan_controls(valid, checkpoint, conversion)
    output = check_output(Path(valid.output), force=force, source=source.folder)
    for planned in controls:
        if planned.output is not None:
            begun = resume and TrainingFolder(output).part(f"control-{planned.name}").is_writing
            check_output(Path(planned.output), force=force or begun, source=source.folder)
    check_writable(output.parent)
    if resume and process_count() == 1:  # several processes check it in `begin`
        TrainingFolder(output).check_begun()
    light = dry_run and not measure
    if light:
        check_device(device)
    else:
        kind = pick_device(device).type
        if attn_implementation is not None:
            check_attention(attn_implementation)
    encoders = _light_encoders(source.folder) if light and not _has_chat(valid) else None
    encode, chat, offsets = encoders or _encoders(source.folder, trust_remote_code)
    data = read_rows(valid, encode, chat, offsets, on_documents=_on_documents(on_progress))
    plan = make_plan(valid, checkpoint, layout, data, device, controls)
    if on_progress is not None and is_first():
        on_progress({"event": "plan", **plan.to_dict()})
    if light:
        return FinetuneResult(plan)
    with own_sharding(kind) as sharded:
        setup = RunSetup(
            recipe=valid,
            source=source,
            checkpoint=checkpoint,
            layout=layout,
            data=data,
            plan=plan,
            pad=_pad(source.folder, trust_remote_code),
            device=device,
            attn_implementation=attn_implementation,
            again=_command(recipe, overrides),
            sharded=sharded,
            on_progress=on_progress,
            conversion=conversion,
        )
        if dry_run:
            from surgery.recovery.trial_run import estimate_run

            return FinetuneResult(replace(plan, estimate=estimate_run(setup)))
        run = RecoveryRun(setup, output)
        with run.folder.alone():
            result = run.run(resume=resume, force=force)
        leave_at_exit()
        return result


def _on_documents(on_progress: OnProgress | None) -> OnDocuments | None:
    """Reading as events, a few a second; the first process gives them."""
    if on_progress is None or not is_first():
        return None
    last = -math.inf

    def tell(what: str, done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= _EVENTS_APART or done == total:
            last = time.monotonic()
            on_progress({"event": what, "documents": done, "of": total})

    return tell


def read_rows(
    recipe: Recipe,
    encode: Encode,
    chat: EncodeChat | None = None,
    offsets: Offsets | None = None,
    on_documents: OnDocuments | None = None,
) -> TrainingData:
    """The rows of a recipe, for the sequence length of every stage.

    Args:
        recipe: gives ``data``, ``seed``, ``evaluation.sequences`` and the lengths of its stages.
        encode: returns the token ids of each text.
        chat: returns the token ids of a conversation.
        offsets: returns the token ids of a text, and the characters of each.
        on_documents: called with what is done, and the number of documents that are done and of all, if known.

    Raises:
        UsageError: there is no text, or too little to train or to hold out.
    """
    lengths = [stage.data.sequence_length for stage in recipe.stage_recipes()]
    rows = recipe.evaluation.sequences
    return read_data(
        recipe.data,
        encode,
        chat,
        offsets,
        lengths=lengths,
        seed=recipe.seed,
        held_out_rows=rows,
        on_documents=on_documents,
    )


def _has_chat(recipe: Recipe) -> bool:
    return any(getattr(source, "format", "text") == "chat" for _, source in recipe.data.all_sources)


def _light_encoders(folder: Path) -> tuple[Encode, None, Offsets] | None:
    """Encoders from tokenizer.json, which is enough to count tokens; None without that file."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def offsets(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = tokenizer.encode(text)
        return encoding.ids, encoding.offsets

    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(texts)], None, offsets


def _encoders(folder: Path, trust_remote_code: bool) -> tuple[Encode, EncodeChat, Offsets]:
    from surgery.loading import load_tokenizer

    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)

    return (
        lambda texts: tokenizer(texts, verbose=False)["input_ids"],
        lambda messages, name: encode_chat(tokenizer, messages, name),
        offsets_of(tokenizer, special_tokens=True),
    )


def _pad(folder: Path, trust_remote_code: bool) -> int:
    from surgery.loading import load_tokenizer

    return load_tokenizer(folder, trust_remote_code=trust_remote_code).pad_token_id or 0


def _check_placeholders(recipe: Recipe) -> None:
    """Refuse placeholders of a shipped recipe, and name all of them."""
    held_out = recipe.data.held_out if isinstance(recipe.data.held_out, list) else []
    named = [
        *((key, text) for key, source in recipe.data.all_sources for text in getattr(source, "patterns", [])),
        *(("data.held_out", text) for text in held_out),
    ]
    left = [
        key
        for key, value in (("model", recipe.model), *named, ("output", recipe.output))
        if value.startswith(PLACEHOLDER) and not Path(value).exists() and not (key == "output" and _parent(value))
    ]
    if left:
        keys = list(dict.fromkeys(left))
        raise UsageError(
            f"the recipe still has placeholders: {', '.join(f'{key} ({PLACEHOLDER}...)' for key in keys)}",
            hint="Pass " + " ".join(f"--set {key}=..." for key in keys),
        )


def _parent(value: str) -> bool:
    return Path(value).parent.is_dir()


def _command(recipe: str | Path | Recipe | Mapping[str, Any], overrides: Sequence[str]) -> str:
    if not isinstance(recipe, str | Path):
        return "call finetune again with resume=True"
    import shlex

    return shlex.join(
        ["surgery", "finetune", str(recipe), *(word for item in overrides for word in ("--set", item)), "--resume"]
    )
