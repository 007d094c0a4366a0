"""Write an operation's constants into the weights: a checkpoint of the source's own class, without code of its own.

An operation that changes nothing is dropped.

A constant b of a head multiplies the head's queries. So it can multiply the rows of the query projection, q = (b W) x.
Where the queries of all heads are normalised together, it multiplies the weight of that norm. A gain g of a head's
output can multiply the columns of the output projection that read it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.anatomy import Anatomy, AttentionLayer, read_anatomy
from surgery.checkpoint import (
    Checkpoint,
    StagedFolder,
    check_output,
    open_checkpoint,
    require_space,
)
from surgery.checkpoint.numbers import read_numbers
from surgery.conversion.external_save import is_saved_externally
from surgery.conversion.records import read_history, read_plan
from surgery.errors import PlanRefusedError
from surgery.operations import OPERATIONS
from surgery.operations.base import HeadFactors
from surgery.recovery.logit_comparison import (
    MergeResult,
    MergeSteps,
    OnProgress,
    compare_logits,
    logits_of,
    probe_tokens,
    tolerance_of,
)
from surgery.recovery.plain_checkpoint import Merged, operations_without_effect, write_plain

if TYPE_CHECKING:
    import torch

_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass
class _Factors:
    """The factors of the heads of one layer, ``(heads,)``, float64; None where there are none."""

    queries: torch.Tensor | None = None
    outputs: torch.Tensor | None = None


def merge_constants(
    folder: Path,
    *,
    output: Path,
    force: bool = False,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> MergeResult:
    """Write a converted checkpoint whose learned parameters are constants, or change nothing, in the source's class.

    Args:
        folder: the converted checkpoint.
        output: folder for the result, in the dtypes of the source.
        force: replace an earlier output of this tool.
        device: for the comparison.
        on_progress: called with finished steps, all steps, and the step that begins.

    Raises:
        PlanRefusedError: an operation is more than constants, or a projection cannot take them.
        VerificationError: the result has other logits; nothing was written.
    """
    checkpoint = open_checkpoint(folder)
    anatomy = read_anatomy(checkpoint)
    dropped = operations_without_effect(checkpoint, anatomy)
    _check_constants(checkpoint, anatomy, dropped)
    step = MergeSteps(on_progress)
    plan = read_plan(folder)
    if is_saved_externally(folder) or plan["source"]["operations"]:
        raise PlanRefusedError(
            f"{folder.name}: its source is no plain checkpoint with a record of its config.json",
            hint="Merge a folder that `surgery convert` or `surgery finetune` wrote from a plain model.",
        )
    target = check_output(output, force=force, source=folder)
    step("multiplying the weights")
    factors = _factors(checkpoint, anatomy, dropped)
    changed = {
        name: tensor
        for index, found in factors.items()
        for name, tensor in _scaled(checkpoint, anatomy, anatomy.layers[index], found).items()
    }
    require_space(target.parent, checkpoint.disk_bytes)
    from surgery.loading import RunOptions, load_model

    options = RunOptions(device=device, dtype="float32")
    tokens, tolerance = probe_tokens(checkpoint), tolerance_of(checkpoint)
    step("running the converted model")
    model = load_model(folder, options)
    if any(one.queries is not None for one in factors.values()):
        _check_norms_without_weights(folder.name, model)
    expected = logits_of(model, tokens)
    with StagedFolder(target, force=force, source=folder) as staged:
        step("writing")
        write_plain(checkpoint, Merged(plan, changed, dropped, read_history(folder)), staged.path)
        step("running the merged model, to compare")
        found = compare_logits(load_model(staged.path, options), tokens, expected, tolerance, "Keep the checkpoint")
        staged.commit()
    return MergeResult(target, folder.name, len(changed), 0, found, tolerance, dropped)


def takes_factors(anatomy: Anatomy, factors: HeadFactors) -> bool:
    """Whether projections can hold these factors of each head, as far as headers show."""
    normed = [layer for layer in anatomy.layers if layer.query_norm == "head" or layer.query_tensor is None]
    queries = anatomy.family.query_rows == "queries" and not normed
    return (queries or not factors.queries) and bool(anatomy.family.output or not factors.outputs)


def _check_constants(checkpoint: Checkpoint, anatomy: Anatomy, dropped: Collection[str]) -> None:
    """Refuse what is more than a constant, and is not dropped; needs no torch.

    Raises:
        PlanRefusedError: an operation is.
    """
    for options in anatomy.operations:
        operation = OPERATIONS[str(options["name"])]
        if operation.in_config_alone or operation.name in dropped:
            continue
        if operation.head_factors(options) is None:
            kind = options.get("form") or operation.name
            raise PlanRefusedError(
                f"{checkpoint.folder.name}: {kind} is more than a constant for each head, so weights cannot hold it",
                hint="Serve the checkpoint with its code. To merge a LoRA adapter, pass its folder: OUT/adapter.",
            )


def _factors(checkpoint: Checkpoint, anatomy: Anatomy, dropped: Collection[str]) -> dict[int, _Factors]:
    """The factors of each layer, all operations together; none where every head has exactly 1."""
    import torch

    found: dict[int, _Factors] = {}
    for options in anatomy.operations:
        operation = OPERATIONS[str(options["name"])]
        if operation.in_config_alone or operation.name in dropped:
            continue
        factors = operation.head_factors(options)
        assert factors is not None, "checked"
        heads = list(options.get("heads") or range(anatomy.heads))
        for index in options["layers"]:
            own, module = found.setdefault(index, _Factors()), f"{anatomy.layers[index].module}.{operation.name}"
            for kind, names in (("queries", factors.queries), ("outputs", factors.outputs)):
                for name in names:
                    values = _read(checkpoint, f"{module}.{name}")
                    if bool((values == 1).all()):
                        continue
                    total = getattr(own, kind)
                    total = torch.ones(anatomy.heads, dtype=torch.float64) if total is None else total
                    total[heads] *= values
                    setattr(own, kind, total)
    return found


def _scaled(
    checkpoint: Checkpoint, anatomy: Anatomy, layer: AttentionLayer, factors: _Factors
) -> dict[str, torch.Tensor]:
    """The tensors of a layer that hold its factors, by name."""
    found: dict[str, torch.Tensor] = {}
    if factors.queries is not None:
        found |= _scaled_queries(checkpoint, anatomy, layer, factors.queries)
    if factors.outputs is not None:
        found |= _scaled_outputs(checkpoint, anatomy, layer, factors.outputs)
    return found


def _scaled_outputs(
    checkpoint: Checkpoint, anatomy: Anatomy, layer: AttentionLayer, factors: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The output projection, whose columns read the heads one after the other."""
    family = anatomy.family
    name = f"{layer.module}.{family.output}.weight"
    if not family.output or name not in checkpoint.tensors:
        raise PlanRefusedError(
            f"{checkpoint.folder.name}: {layer.module} has no projection that reads the outputs of its heads as they "
            "are, so weights cannot hold a gain for each head",
            hint="Serve the checkpoint with its code.",
        )
    value = _read(checkpoint, name)
    # GPT-2's transposed layers read along the first axis.
    axis = 1 - family.query_axis
    columns = factors.repeat_interleave(value.shape[axis] // len(factors))
    return {name: value * (columns if axis == 1 else columns[:, None])}


def _scaled_queries(
    checkpoint: Checkpoint, anatomy: Anatomy, layer: AttentionLayer, factors: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The query projection, or the weight of the norm after it."""
    folder, family = checkpoint.folder.name, anatomy.family
    if layer.query_norm == "head" or layer.query_tensor is None:
        raise _norm_error(folder, layer.module)
    if family.query_rows != "queries":
        raise PlanRefusedError(
            f"{folder}: {layer.query_tensor} holds more than queries, and only projections of queries alone are merged",
            hint="Serve the checkpoint with its code.",
        )
    rows = factors.repeat_interleave(layer.head_dim)
    if layer.query_norm == "all":
        name = f"{layer.module}.q_norm.weight"
        return {name: _read(checkpoint, name) * rows}
    names = [layer.query_tensor, layer.query_tensor.removesuffix("weight") + "bias"]
    return {
        name: (value * (rows[:, None] if value.dim() > 1 else rows))
        for name in names
        if name in checkpoint.tensors
        for value in [_read(checkpoint, name)]
    }


def _norm_error(folder: str, module: str) -> PlanRefusedError:
    return PlanRefusedError(
        f"{folder}: {module} normalises the queries of each head after the projection, so weights cannot hold a "
        "constant for each head's queries",
        hint="Serve the checkpoint with its code, or calibrate gains alone: --form none --outputs gain.",
    )


def _check_norms_without_weights(folder: str, model: Any) -> None:
    """Refuse norms of queries that no tensor on the disk shows."""
    from surgery.loading import operation_modules

    for path in operation_modules(model):
        module = path.rpartition(".")[0]
        for name, child in model.get_submodule(module).named_children():
            if name in ("q_norm", "qk_norm") and not list(child.parameters()):
                raise _norm_error(folder, module)


def _read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A tensor of the checkpoint in float64; quantized weights are refused."""
    import torch

    info = checkpoint.tensors[name]
    if info.dtype not in _FLOATS:
        raise PlanRefusedError(
            f"{checkpoint.folder.name}: {name} is stored as {info.dtype}, which cannot be multiplied without loss",
            hint="Merge before the weights are quantized.",
        )
    return torch.from_numpy(read_numbers(checkpoint, name).astype("f8")).reshape(info.shape)
