"""What a run will do and need, from config.json, headers and the text alone: no weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from surgery.checkpoint import Checkpoint, load_json
from surgery.checkpoint.record import HISTORY_NAME, PLAN_NAME
from surgery.data import Row
from surgery.recovery.dataset import TrainingData
from surgery.recovery.estimating import Estimate
from surgery.recovery.packed import linear_shapes
from surgery.recovery.preparing import Layout, is_operation, lora_targets, trained_names
from surgery.recovery.recipe import Recipe, TrainLora

# Logits held at once in training, in elements: 256 MiB in float32. More are made a piece at a time (`recovery.logits`;
# the number is here since plans import no torch).
TRAINED_AT_ONCE = 2**26

_FLOAT = 4
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Memory:
    """Estimated bytes on one device that trains, nothing sharded. Activations are rough: sdpa attention."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class StagePlan:
    """One stage, where a recipe has any."""

    name: str
    what: str
    objective: str
    sequence_length: int
    steps: int
    tokens: int
    tokens_per_step: float
    parameters: Mapping[str, int]
    sparsity: str | None = None
    softness: str | None = None
    bridge: str | None = None

    @property
    def screening(self) -> str | None:
        """What is asked of screening, in words; None for nothing."""
        return ", ".join(said for said in (self.sparsity, self.softness, self.bridge) if said) or None


# Repeating a text about four times costs little (arXiv 2305.16264); past that it is memorised.
_MANY_PASSES = 8


@dataclass(frozen=True)
class FinetunePlan:
    """What ``--dry-run`` prints.

    ``parameters`` has the number of trained parameters by optimizer group; ``passes`` says how often the text is
    gone through. With ``streaming`` nobody knows how much text there is: passes is 0, and rows, tokens and documents of
    the training text are those of the beginning that was read.
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
    held_out_share: float | None
    dropped_documents: int
    precision: str
    parameters: Mapping[str, int]
    parameters_total: int
    memory: Memory
    streaming: bool = False
    teacher: str | None = None
    controls: tuple[str, ...] = ()
    stages: tuple[StagePlan, ...] = ()
    screening: str | None = None
    estimate: Estimate | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "memory": {**asdict(self.memory), "total": self.memory.total}}


def count_steps(
    stage: Recipe, sources: Sequence[Sequence[Row]], weights: Sequence[float] = (1.0,), processes: int = 1
) -> tuple[int, float]:
    """Optimizer steps of a stage, and tokens in each on average (rows are not always full)."""
    rows = stage.batch.sequences * stage.batch.accumulation * processes
    filled = [(source, weight) for source, weight in zip(sources, weights, strict=True) if source]
    # A source's share is of tokens, so its share of rows is the larger the emptier they are.
    per_row = [sum(row.tokens for row in source) / len(source) for source, _ in filled]
    total = sum(weight for _, weight in filled)
    per_step = rows * total / sum(weight / tokens for (_, weight), tokens in zip(filled, per_row, strict=True))
    budget = stage.length
    if budget.steps is not None:
        return budget.steps, per_step
    assert budget.tokens is not None
    return max(1, math.ceil(budget.tokens / per_step)), per_step


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
    precision = effective_precision(recipe, checkpoint)
    recipes = recipe.stage_recipes()
    stages = [_plan_stage(recipe, number, checkpoint, layout, data) for number in range(len(recipes))]
    whole = list(zip(recipes, stages, strict=True))
    steps, tokens = sum(stage.steps for stage in stages), sum(stage.tokens for stage in stages)
    once = {length: sum(row.tokens for rows in sources for row in rows) for length, sources in data.by_length.items()}
    passes = sum(stage.tokens / once[stage.sequence_length] for stage in stages)
    second = needs_second_copy(recipes)
    teaches = any(stage.objective != "next_token" for stage in stages)
    memories = [
        _memory(own, checkpoint, layout, precision, sum(stage.parameters.values()), second) for own, stage in whole
    ]
    return FinetunePlan(
        model=recipe.model,
        output=recipe.output,
        what=" then ".join(dict.fromkeys(stage.what for stage in stages)),
        layers=tuple(sorted({layer for own in recipes for layer in layout.chosen(own)})),
        steps=steps,
        tokens=tokens,
        tokens_per_step=round(tokens / steps, 1),
        passes=0.0 if data.stream is not None else round(passes, 3),
        train_rows=len(data.train),
        train_tokens=data.train_tokens,
        train_documents=data.train_documents,
        held_out_rows=len(data.held_out),
        held_out_tokens=data.held_out_tokens,
        held_out_documents=data.held_out_documents,
        held_out_share=data.held_out_share,
        dropped_documents=data.dropped_documents,
        precision=precision,
        parameters=max((stage.parameters for stage in stages), key=lambda groups: sum(groups.values())),
        parameters_total=checkpoint.total_parameters,
        memory=max(memories, key=lambda memory: memory.total),
        streaming=data.stream is not None,
        teacher=("a second copy of the model" if second else "the same weights, operation and adapter off")
        if teaches
        else None,
        controls=recipe.controls,
        stages=tuple(stages) if recipe.stages else (),
        screening=None if recipe.stages else stages[0].screening,
        notes=(
            *_notes(checkpoint, passes if data.stream is None else 0.0, stages),
            *_too_long(layout.family.value(checkpoint.config, "max_position_embeddings"), stages),
        ),
    )


def _notes(checkpoint: Checkpoint, passes: float, stages: Sequence[StagePlan]) -> tuple[str, ...]:
    """What makes a run useless though it is possible."""
    found = []
    asked = stages[0].sparsity or stages[0].bridge
    if stages[0].objective != "next_token" and not asked and _starts_as_source(checkpoint):
        found.append(
            f"the model still is exactly its source, so {stages[0].objective} has nothing to learn: the teacher says "
            "the same. Train with objective next_token, or convert with a form that changes the model (paper)"
        )
    if passes > _MANY_PASSES:
        found.append(
            f"the text is gone through {passes:,.1f} times; it will be learned by heart. Give more text, or a smaller "
            "budget"
        )
    return tuple(found)


def _too_long(positions: Any, stages: Sequence[StagePlan]) -> list[str]:
    """Of training on longer sequences than the model has positions for."""
    longest = max(stage.sequence_length for stage in stages)
    if not isinstance(positions, int) or longest <= positions:
        return []
    return [
        f"sequences of {longest:,} tokens go beyond the model's {positions:,} positions; the operation rope makes "
        "more of them, as in the recipe extend-context"
    ]


def _starts_as_source(checkpoint: Checkpoint) -> bool:
    """Whether each operation starts as the identity everywhere, and nothing was trained since."""
    if PLAN_NAME not in checkpoint.other_files or HISTORY_NAME in checkpoint.other_files:
        return False
    starts = load_json(checkpoint.folder / PLAN_NAME).get("identity")
    return isinstance(starts, list) and all(start == "everywhere" for start in starts)


def needs_second_copy(stages: Sequence[Recipe]) -> bool:
    """Whether the original must be loaded beside the model: it teaches, and its own weights are trained."""
    full = any(stage.train.what == "full" for stage in stages)
    return full and any(stage.objective.name != "next_token" for stage in stages)


def _plan_stage(recipe: Recipe, number: int, checkpoint: Checkpoint, layout: Layout, data: TrainingData) -> StagePlan:
    stage = recipe.stage_recipe(number) if recipe.stages else recipe
    steps, per_step = count_steps(stage, data.rows(stage.data.sequence_length), data.weights)
    return StagePlan(
        name=recipe.stage_name(number),
        what=stage.train.what,
        objective=stage.objective.name,
        sequence_length=stage.data.sequence_length,
        steps=steps,
        tokens=round(steps * per_step),
        tokens_per_step=round(per_step, 1),
        parameters=_groups(stage, checkpoint, layout),
        sparsity=None if stage.sparsity is None else stage.sparsity.described(),
        softness=None if stage.softness is None else stage.softness.described(),
        bridge=None if stage.bridge is None else stage.bridge.described(),
    )


def _groups(recipe: Recipe, checkpoint: Checkpoint, layout: Layout) -> dict[str, int]:
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


def _memory(
    recipe: Recipe, checkpoint: Checkpoint, layout: Layout, precision: str, trained: int, second: bool
) -> Memory:
    size = 2 if precision == "bfloat16" else _FLOAT
    compute = 2 if precision.startswith("bfloat16") else _FLOAT

    def size_of(key: str) -> int:
        return int(layout.family.value(checkpoint.config, key) or 0)

    hidden, vocabulary = size_of("hidden_size"), size_of("vocab_size")
    inner = size_of("intermediate_size") or 4 * hidden
    layers = layout.count
    tokens = recipe.batch.sequences * recipe.data.sequence_length
    # Kept for the backward pass, per token: about ten vectors of the hidden size and three of the feed-forward's; the
    # logits and their gradient in float32, and as much again for the teacher's.
    layer = tokens * compute * (10 * hidden + 3 * inner)
    kept = layer + layers * tokens * compute * hidden if recipe.gradient_checkpointing else layers * layer
    logits = (4 if recipe.objective.name == "distill" else 2) * min(tokens * vocabulary, TRAINED_AT_ONCE) * _FLOAT
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
