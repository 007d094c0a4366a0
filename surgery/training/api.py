"""Train one model with one set of options: the engine as a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from surgery.training.dataset import TrainingData
from surgery.training.folder import TrainingFolder
from surgery.training.options import TrainingOptions
from surgery.training.processes import on_first
from surgery.training.progress import Progress
from surgery.training.run import RunSettings, TrainingRun

if TYPE_CHECKING:
    from torch import nn

    from surgery.training.extension import Extension
    from surgery.training.step_log import OnProgress
    from surgery.training.teacher import Teacher


def train(
    model: nn.Module,
    data: TrainingData,
    options: TrainingOptions,
    folder: TrainingFolder,
    *,
    teacher: Teacher | None = None,
    extensions: Callable[[int], Sequence[Extension]] | None = None,
    resume: bool = False,
    force: bool = False,
    device: str = "auto",
    pad: int = 0,
    on_progress: OnProgress | None = None,
) -> Progress:
    """Train every parameter with ``requires_grad`` of a causal language model, in place.

    The model may be of any kind, freshly initialised too. Log and checkpoints are in ``folder``, which stays: remove it
    once the model is saved. Ctrl-C or SIGTERM finishes the step and saves a checkpoint.

    Args:
        model: transformers' causal language model, or one with its call signature.
        data: from `read_data`; it has rows of ``options.sequence_length``.
        options: of the training.
        folder: for log and checkpoints.
        teacher: gives targets, where ``options.objective`` needs them.
        extensions: extra loss terms, schedules and numbers.
        resume: continue the run that was interrupted, from its last checkpoint: the same steps, losses and weights.
        force: start over where an interrupted run is.
        device: auto, cpu, cuda or mps.
        pad: token id that fills rows up.
        on_progress: called with events, plain dictionaries with a key ``event``.

    Raises:
        UsageError: an earlier run is in the folder, or there is none to resume.
        SurgeryError: the trial step fails, or the disk does not take a checkpoint.
        DivergedError: the loss or gradient is no longer finite, or the loss rose for too long.
        TrainingStoppedError: interrupted, with a checkpoint to resume from.
    """
    from transformers import set_seed

    from surgery.training.callbacks import StopCallback
    from surgery.training.interruption import stop_on_signals

    set_seed(options.seed)
    kept = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    settings = RunSettings([options], data, device, pad=pad, on_progress=on_progress, prepare=extensions)
    stop = StopCallback()
    run = TrainingRun(model, settings, folder, stop, kept, teacher)
    with folder.alone(), stop_on_signals(stop):
        values, identity = options.model_dump(mode="json"), {"data": data.fingerprint}
        start = on_first(lambda: folder.begin(values, identity, resume=resume, force=force))
        if start is None:
            run.try_out([0])
        trainer = run.train([0], start)
        run.note_held_out(trainer, trainer.held_out_losses())
    return trainer.progress
