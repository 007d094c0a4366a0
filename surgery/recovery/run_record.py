"""The record of a run in the history of a checkpoint: of the trained model, or of a control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surgery.checkpoint import sha256_json
from surgery.recovery.model_run import RunSetup, TrainedModel
from surgery.recovery.recipe_file import dump_recipe
from surgery.recovery.result_folder import Record
from surgery.recovery.teacher_choice import teacher_in_words
from surgery.recovery.trained_weights import TrainedWeights
from surgery.training.folder import TrainingFolder
from surgery.version import __version__

if TYPE_CHECKING:
    from surgery.training.held_out import Losses


def training_entry(
    setup: RunSetup, trained: TrainedModel, weights: TrainedWeights, part: TrainingFolder, before: Losses, after: Losses
) -> dict[str, Any]:
    """What was trained, how and on what, and the losses.

    Args:
        setup: of the run.
        trained: the model.
        weights: that are written.
        part: with the log.
        before, after: held-out losses.
    """
    from surgery.training.held_out import mean_loss

    recipe, stages = setup.recipe, setup.stage_recipes()
    what = dict.fromkeys(stage.train.what for stage in stages)
    return {
        "step": "finetune",
        "version": __version__,
        "recipe_sha256": sha256_json(recipe.model_dump(mode="json")),
        "label": f"finetune {', '.join(what)}",
        "trained": " then ".join(what),
        "objective": " then ".join(dict.fromkeys(stage.objective.name for stage in stages)),
        "teacher": teacher_in_words(stages, setup.layout),
        "steps": trained.progress.step,
        "tokens": trained.progress.tokens,
        "seconds": round(trained.progress.seconds, 1),
        **log_numbers(part),
        "held_out_loss_before": mean_loss(before),
        "held_out_loss_after": mean_loss(after),
        "held_out_tokens": setup.plan.held_out_tokens,
        "data_sha256": setup.data.fingerprint,
        "merged": weights.merge,
        "weights_changed": weights.changes_weights,
    }


def log_numbers(part: TrainingFolder) -> dict[str, float | None]:
    """The last loss of a log, and the share of rejected keys at its ends; None where nothing was measured."""
    rows = part.rows()
    losses = [row["loss"] for row in rows if "loss" in row]
    rejected = [row["held_out_rejected"] for row in rows if "held_out_rejected" in row]
    return {
        "loss": losses[-1] if losses else None,
        "rejected_before": rejected[0] if rejected else None,
        "rejected_after": rejected[-1] if rejected else None,
    }


def run_record(
    setup: RunSetup, entry: Mapping[str, Any], part: TrainingFolder, controls: Mapping[str, TrainingFolder]
) -> Record:
    """The record of a training: its entry, recipe, log, curves, and the logs of the controls.

    Args:
        setup: of the run.
        entry: of the history.
        part: with the log.
        controls: the folders of controls whose logs are kept too, by name.
    """
    from surgery.reporting.training_log import draw_training_log

    rows, others = part.rows(), {name: control.rows() for name, control in controls.items()}
    return Record(
        entry=entry,
        recipe=dump_recipe(setup.recipe),
        log=part.log_path.read_text(encoding="utf-8"),
        draw=lambda path: draw_training_log(rows, path, others),
        logs={f"log-{name}": controls[name].log_path.read_text(encoding="utf-8") for name in controls if others[name]},
    )
