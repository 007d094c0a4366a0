"""A trial before training: one step at full length and one save, so that a run that cannot finish fails at once."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file

from surgery.data import Row, collate
from surgery.errors import SurgeryError
from surgery.training.checkpointed_trainer import TRAINED_NAME
from surgery.training.folder import TrainingFolder
from surgery.training.trainer import StageTrainer


def trial(trainer: StageTrainer) -> None:
    """One forward and backward pass at full length, and one save. Weights and random state stay as they were.

    Args:
        trainer: of a stage.

    Raises:
        SurgeryError: an extension finds nothing to learn, or the saved parameters do not read back.
        DivergedError: the loss is not finite.
    """
    module, length = trainer.module, trainer.options.sequence_length
    longest = max((row for source in trainer.rows.train for row in source), key=lambda row: row.tokens)
    tokens = [token for document in longest.documents for token in document]
    full = Row((tuple(tokens[position % len(tokens)] for position in range(length)),))
    with torch.random.fork_rng(devices=trainer.devices):
        batch = collate([full] * trainer.options.batch.sequences, trainer.rows.pad)
        module.train()
        trainer.accelerator.gradient_state._set_sync_gradients(True)
        loss = trainer.compute_loss(module, {key: value.to(trainer.args.device) for key, value in batch.items()})
        if loss.requires_grad:
            loss.backward()
    if not torch.isfinite(loss):
        raise trainer.diverged(f"the loss of the trial step is {loss.item()}")
    for extension in trainer.extensions:
        extension.check_trial()
    module.zero_grad(set_to_none=True)
    expected = trainer.trained_tensors()
    if trainer.is_world_process_zero():
        _trial_save(trainer.folder, expected)


def _trial_save(run: TrainingFolder, expected: dict[str, torch.Tensor]) -> None:
    folder = run.path / "trial"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        save_file(expected, folder / TRAINED_NAME)
        saved = load_file(folder / TRAINED_NAME)
        if any(not torch.equal(saved[name], tensor) for name, tensor in expected.items()):
            raise SurgeryError("the trial save does not read back as it was written; check the disk")
    except OSError as error:
        raise SurgeryError(f"the trial save failed: {error.strerror or error}", hint="Free some space.") from error
    finally:
        (folder / TRAINED_NAME).unlink(missing_ok=True)
        folder.rmdir()
