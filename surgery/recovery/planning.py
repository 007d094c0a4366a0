"""What a run will do and need, from config.json, headers and the text alone: no weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from surgery.checkpoint import Checkpoint
from surgery.recovery.dataset import TrainingData
from surgery.recovery.preparing import Layout, is_operation, lora_targets, trained_names
from surgery.recovery.recipe import Recipe, TrainLora

_FLOAT = 4
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Memory:
    """Estimated bytes on the device that trains. Activations are rough: sdpa attention, no fused loss."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class FinetunePlan:
    """What ``--dry-run`` prints.

    ``parameters`` has the number of trained parameters by optimizer group; ``passes`` says how often the text is
    gone through.
    """

    model: str
    output: str
    what: str
    layers: tuple[int, ...]
    steps: int
    tokens: int
    tokens_per_step: float
    passes: float
    train_rows: int
    train_tokens: int
    train_documents: int
    held_out_rows: int
    held_out_tokens: int
    held_out_documents: int
    dropped_documents: int
    precision: str
    parameters: Mapping[str, int]
    parameters_total: int
    memory: Memory

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "memory": {**asdict(self.memory), "total": self.memory.total}}


def count_steps(recipe: Recipe, data: TrainingData, processes: int = 1) -> tuple[int, float]:
    """Optimizer steps, and tokens in each on average (rows are not always full)."""
    rows = recipe.batch.sequences * recipe.batch.accumulation * processes
    per_step = min(rows, len(data.train)) * data.train_tokens / len(data.train)
    if recipe.budget.steps is not None:
        return recipe.budget.steps, per_step
    assert recipe.budget.tokens is not None
    return max(1, math.ceil(recipe.budget.tokens / per_step)), per_step


def effective_precision(recipe: Recipe, checkpoint: Checkpoint) -> str:
    """``auto`` resolved: the checkpoint's dtype, but mixed where full training would lose small steps in bfloat16."""
    if recipe.precision != "auto":
        return recipe.precision
    sizes: dict[str, int] = {}
    for name, info in checkpoint.tensors.items():
        if not is_operation(name):
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    main = max(sizes, key=lambda dtype: sizes[dtype], default="F32")
    if main not in ("BF16", "F16"):
        return "float32"
    return "bfloat16-mixed" if recipe.train.what == "full" else "bfloat16"


def make_plan(recipe: Recipe, checkpoint: Checkpoint, layout: Layout, data: TrainingData) -> FinetunePlan:
    """The plan of a run.

    Raises:
        PlanRefusedError: there is nothing to train.
        UsageError: layers or targets that the model has not.
    """
    steps, per_step = count_steps(recipe, data)
    precision = effective_precision(recipe, checkpoint)
    groups = _groups(recipe, checkpoint, layout)
    trained = sum(groups.values())
    return FinetunePlan(
        model=recipe.model,
        output=recipe.output,
        what=recipe.train.what,
        layers=tuple(layout.chosen(recipe)),
        steps=steps,
        tokens=round(steps * per_step),
        tokens_per_step=round(per_step, 1),
        passes=round(steps * per_step / data.train_tokens, 3),
        train_rows=len(data.train),
        train_tokens=data.train_tokens,
        train_documents=data.train_documents,
        held_out_rows=len(data.held_out),
        held_out_tokens=data.held_out_tokens,
        held_out_documents=data.held_out_documents,
        dropped_documents=data.dropped_documents,
        precision=precision,
        parameters=groups,
        parameters_total=checkpoint.total_parameters,
        memory=_memory(recipe, checkpoint, precision, trained),
    )


def _groups(recipe: Recipe, checkpoint: Checkpoint, layout: Layout) -> dict[str, int]:
    groups = {"scale": 0, "weights": 0, "no_decay": 0}
    for name in trained_names(recipe, layout, checkpoint.tensors):
        info = checkpoint.tensors[name]
        kind = "scale" if is_operation(name) else "weights" if len(info.shape) > 1 else "no_decay"
        groups[kind] += info.parameters
    if isinstance(recipe.train, TrainLora):
        linear = {
            name.removesuffix(".weight"): info.shape
            for name, info in checkpoint.tensors.items()
            if name.endswith(".weight") and len(info.shape) == 2
        }
        for target in lora_targets(recipe.train, layout, linear, layout.chosen(recipe)):
            rows, columns = linear[target]
            groups["weights"] += recipe.train.rank * (rows + columns)
            groups["no_decay"] += rows if recipe.train.dora else 0
    return {kind: count for kind, count in groups.items() if count}


def _memory(recipe: Recipe, checkpoint: Checkpoint, precision: str, trained: int) -> Memory:
    size = 2 if precision == "bfloat16" else _FLOAT
    compute = 2 if precision.startswith("bfloat16") else _FLOAT
    config = checkpoint.config
    hidden = int(config.get("hidden_size") or 0)
    inner = int(config.get("intermediate_size") or 4 * hidden)
    layers = int(config.get("num_hidden_layers") or 0)
    vocabulary = int(config.get("vocab_size") or 0)
    tokens = recipe.batch.sequences * recipe.data.sequence_length
    # Kept for the backward pass, per token: about ten vectors of the hidden size and three of the feed-forward's; the
    # logits twice in float32.
    layer = tokens * compute * (10 * hidden + 3 * inner)
    kept = layer + layers * tokens * compute * hidden if recipe.gradient_checkpointing else layers * layer
    return Memory(
        weights=sum(
            info.parameters * (size if info.dtype in _BYTES and not is_operation(name) else _FLOAT)
            for name, info in checkpoint.tensors.items()
        ),
        gradients=trained * _FLOAT,
        optimizer=2 * trained * _FLOAT,
        activations=kept + 2 * tokens * vocabulary * _FLOAT,
    )
