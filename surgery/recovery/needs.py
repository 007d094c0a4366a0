"""Memory, number of trained parameters and precision of a stage, from headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from surgery.checkpoint import Checkpoint
from surgery.loading.precision import choose_dtype, float32_bytes, runs_on_processor, tell
from surgery.operations.parameters import is_operation
from surgery.recovery.layout import Layout
from surgery.recovery.lora import lora_targets
from surgery.recovery.parameters import trained_names
from surgery.recovery.quantized import linear_shapes
from surgery.recovery.recipe import Precision, Recipe
from surgery.recovery.train_choice import TrainLora
from surgery.training.memory import TRAINED_AT_ONCE

_FLOAT = 4
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Memory:
    """Estimated bytes on one device, without sharding. Activations are a rough estimate for sdpa attention."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.gradients + self.optimizer + self.activations


def effective_precision(recipe: Recipe, checkpoint: Checkpoint, device: str = "auto") -> Precision:
    """The precision of a run.

    ``auto`` is the checkpoint's dtype, or mixed if bfloat16 weights are trained; and float32 on a processor that is
    slow in bfloat16.
    """
    if recipe.precision == "float32":
        return recipe.precision
    wanted = recipe.precision if recipe.precision != "auto" else _stored_precision(recipe, checkpoint)
    if wanted == "float32":
        return wanted
    choice = choose_dtype(
        "bfloat16",
        "auto" if recipe.precision == "auto" else "bfloat16",
        on_processor=partial(runs_on_processor, device),
        needed=float32_bytes(checkpoint.total_parameters),
    )
    tell(choice)
    return "float32" if choice.dtype == "float32" else wanted


def _stored_precision(recipe: Recipe, checkpoint: Checkpoint) -> Precision:
    """The precision that suits the weights on the disk."""
    sizes: dict[str, int] = {}
    for name, info in checkpoint.tensors.items():
        if not is_operation(name):
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    main = max(sizes, key=lambda dtype: sizes[dtype], default="F32")
    if main not in ("BF16", "F16"):
        return "float32"
    return "bfloat16-mixed" if recipe.train.changes_weights else "bfloat16"


def trained_counts(recipe: Recipe, checkpoint: Checkpoint, layout: Layout) -> dict[str, int]:
    """The number of parameters that a stage trains, by optimizer group."""
    groups = {"scale": 0, "weights": 0, "no_decay": 0}
    for name in trained_names(recipe, layout, checkpoint.tensors):
        info = checkpoint.tensors[name]
        kind = "scale" if is_operation(name) else "weights" if len(info.shape) > 1 else "no_decay"
        groups[kind] += info.parameters
    if isinstance(recipe.train, TrainLora):
        linear = linear_shapes(checkpoint)
        for target in lora_targets(recipe.train, layout, linear, layout.chosen(recipe)):
            rows, columns = linear[target]
            groups["weights"] += recipe.train.rank * (rows + columns)
            groups["no_decay"] += rows if recipe.train.dora else 0
    return {kind: count for kind, count in groups.items() if count}


def memory_needed(
    recipe: Recipe, checkpoint: Checkpoint, layout: Layout, precision: str, trained: int, second: bool
) -> Memory:
    """The memory of a stage.

    Args:
        recipe: of the stage.
        checkpoint: the converted checkpoint.
        layout: of the checkpoint.
        precision: the resolved precision.
        trained: number of trained parameters.
        second: whether the teacher is a second copy of the model.
    """
    size = 2 if precision == "bfloat16" else _FLOAT
    compute = 2 if precision.startswith("bfloat16") else _FLOAT

    def size_of(key: str) -> int:
        return int(layout.value(checkpoint.config, key) or 0)

    hidden, vocabulary = size_of("hidden_size"), size_of("vocab_size")
    inner = size_of("intermediate_size") or 4 * hidden
    layers = layout.count
    tokens = recipe.batch.sequences * recipe.data.sequence_length
    # For the backward pass, per token: about ten vectors of the hidden size and three of the feed-forward size; the
    # logits and their gradient in float32, and the same for a teacher.
    layer = tokens * compute * (10 * hidden + 3 * inner)
    kept = layer + layers * tokens * compute * hidden if recipe.gradient_checkpointing else layers * layer
    logits = recipe.objective.logits_held * min(tokens * vocabulary, TRAINED_AT_ONCE) * _FLOAT
    return Memory(
        weights=(2 if second else 1)
        * sum(
            info.parameters * (size if info.dtype in _BYTES and not is_operation(name) else _FLOAT)
            for name, info in checkpoint.tensors.items()
        ),
        gradients=trained * _FLOAT,
        optimizer=2 * trained * _FLOAT,
        activations=kept + logits,
    )
