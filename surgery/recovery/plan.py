"""The plan of a run: steps, tokens, memory and notes, from config.json, headers and the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from surgery.checkpoint import Checkpoint, load_json
from surgery.checkpoint.record import HISTORY_NAME, PLAN_NAME
from surgery.operations import OPERATIONS
from surgery.recovery.control_plan import ControlPlan
from surgery.recovery.estimate import CostEstimate
from surgery.recovery.layout import Layout
from surgery.recovery.needs import Memory, effective_precision, memory_needed, trained_counts
from surgery.recovery.operation_sections import OWNERS, changes_model, given_sections
from surgery.recovery.recipe import Precision, Recipe
from surgery.recovery.teacher_choice import needs_second_copy, teacher_in_words
from surgery.training.dataset import TrainingData
from surgery.training.run import count_steps


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage."""

    name: str
    what: str
    objective: str
    sequence_length: int
    steps: int
    tokens: int
    tokens_per_step: float
    parameters: Mapping[str, int]
    sections: Mapping[str, str] = field(default_factory=dict)

    @property
    def section_summaries(self) -> dict[str, str]:
        """The sections of each operation in words, by the operation's name."""
        found: dict[str, list[str]] = {}
        for key, said in self.sections.items():
            found.setdefault(OWNERS[key], []).append(said)
        return {name: ", ".join(parts) for name, parts in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; a missing section is None."""
        own = asdict(self)
        del own["sections"]
        return {**own, **{key: self.sections.get(key) for key in OWNERS}}


# Repeating a text about four times costs little (arXiv 2305.16264); past that it is memorised.
_MANY_PASSES = 8


@dataclass(frozen=True)
class FinetunePlan:
    """What ``--dry-run`` prints.

    ``parameters`` has the number of trained parameters by optimizer group; ``passes`` is the number of passes
    over the text. With ``streaming`` the amount of text is not known: passes is 0, and rows, tokens and documents
    describe the beginning of the training text.
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
    precision: Precision
    parameters: Mapping[str, int]
    parameters_total: int
    memory: Memory
    streaming: bool = False
    teacher: str | None = None
    controls: tuple[ControlPlan, ...] = ()
    stages: tuple[StagePlan, ...] = ()
    section_summaries: Mapping[str, str] = field(default_factory=dict)
    estimate: CostEstimate | None = None
    notes: tuple[str, ...] = ()

    def control_output(self, control: str) -> str | None:
        """The folder for a control's checkpoint; None if none is written."""
        return next((own.output for own in self.controls if own.name == control), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        own = asdict(self)
        del own["section_summaries"]
        return {
            **own,
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "stages": [stage.to_dict() for stage in self.stages],
            **{name: self.section_summaries.get(name) for name in dict.fromkeys(OWNERS.values())},
        }


def make_plan(
    recipe: Recipe,
    checkpoint: Checkpoint,
    layout: Layout,
    data: TrainingData,
    device: str = "auto",
    controls: tuple[ControlPlan, ...] = (),
) -> FinetunePlan:
    """The plan of a run on a device, with the plans of its controls.

    Raises:
        PlanRefusedError: there is nothing to train.
        UsageError: the model does not have the layers or targets.
    """
    precision = effective_precision(recipe, checkpoint, device)
    recipes = recipe.stage_recipes()
    stages = [_plan_stage(recipe, number, checkpoint, layout, data) for number in range(len(recipes))]
    whole = list(zip(recipes, stages, strict=True))
    steps, tokens = sum(stage.steps for stage in stages), sum(stage.tokens for stage in stages)
    once = {length: sum(row.tokens for rows in sources for row in rows) for length, sources in data.by_length.items()}
    passes = sum(stage.tokens / once[stage.sequence_length] for stage in stages)
    second = needs_second_copy(recipes)
    memories = [
        memory_needed(own, checkpoint, layout, precision, sum(stage.parameters.values()), second)
        for own, stage in whole
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
        teacher=teacher_in_words(recipes, layout),
        controls=controls,
        stages=tuple(stages) if recipe.stages else (),
        section_summaries={} if recipe.stages else stages[0].section_summaries,
        notes=(
            *_notes(checkpoint, passes if data.stream is None else 0.0, recipes[0]),
            *_too_long(layout.value(checkpoint.config, "max_position_embeddings"), stages),
            *(control.note for control in controls if control.note),
        ),
    )


def _notes(checkpoint: Checkpoint, passes: float, first: Recipe) -> tuple[str, ...]:
    """Reasons why a run would be useless."""
    found = []
    if first.objective.needs_teacher and not changes_model(first) and _starts_as_source(checkpoint):
        found.append(
            f"the model still equals its source, so {first.objective.name} has nothing to learn: the teacher gives the "
            "same output. Train with objective next_token, or convert with a form that changes the model (paper)"
        )
    if passes > _MANY_PASSES:
        found.append(
            f"training passes over the text {passes:,.1f} times, so the model will memorise it. Give more text, or a "
            "smaller budget"
        )
    return tuple(found)


def _too_long(positions: Any, stages: Sequence[StagePlan]) -> list[str]:
    """A note for sequences that are longer than the positions of the model."""
    longest = max(stage.sequence_length for stage in stages)
    if not isinstance(positions, int) or longest <= positions:
        return []
    extending = " or ".join(name for name, operation in OPERATIONS.items() if operation.extends_positions)
    return [
        f"sequences of {longest:,} tokens are longer than the model's {positions:,} positions; the operation "
        f"{extending} adds positions, as in the recipes extend-context and recall-extend"
    ]


def _starts_as_source(checkpoint: Checkpoint) -> bool:
    """Whether each operation starts as the identity everywhere, and nothing has been trained since."""
    if PLAN_NAME not in checkpoint.other_files or HISTORY_NAME in checkpoint.other_files:
        return False
    starts = load_json(checkpoint.folder / PLAN_NAME).get("identity")
    return isinstance(starts, list) and all(start == "everywhere" for start in starts)


def _plan_stage(recipe: Recipe, number: int, checkpoint: Checkpoint, layout: Layout, data: TrainingData) -> StagePlan:
    stage = recipe.stage_recipe(number) if recipe.stages else recipe
    rows = data.rows(stage.data.sequence_length)
    steps, per_step = count_steps(stage.batch, stage.length, rows, data.weights)
    return StagePlan(
        name=recipe.stage_name(number),
        what=stage.train.what,
        objective=stage.objective.name,
        sequence_length=stage.data.sequence_length,
        steps=steps,
        tokens=round(steps * per_step),
        tokens_per_step=round(per_step, 1),
        parameters=trained_counts(stage, checkpoint, layout),
        sections={key: section.described() for key, section in given_sections(stage).items()},
    )
