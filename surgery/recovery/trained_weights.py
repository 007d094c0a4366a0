"""The weights of a trained model, ready to be written."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.checkpoint import Checkpoint, Source
from surgery.operations.parameters import is_operation
from surgery.recovery.adapter import Adapter
from surgery.recovery.layout import Variant
from surgery.recovery.lora import linear_names, lora_targets
from surgery.recovery.model_run import RunSetup, TrainedModel
from surgery.recovery.parameters import trained_names
from surgery.recovery.result_folder import Record, changed_tensors, write_adapter, write_result
from surgery.recovery.train_choice import TrainLora

if TYPE_CHECKING:
    from torch import nn


class TrainedWeights:
    """The weights of a trained model, copied out so that the model can be freed before the next one is loaded.

    Attributes:
        adapter: the adapter; None without LoRA.
        merge: whether a full checkpoint is written, not the adapter.
        names: names of the trained parameters in the merged model.
        changed: the trained tensors, by their names in the checkpoint.
    """

    def __init__(self, trained: TrainedModel, setup: RunSetup, variant: Variant = "operated") -> None:
        """Copy the weights.

        Args:
            trained: with its model.
            setup: of the run.
            variant: the control that the model is, or ``operated``.
        """
        stages, layout = setup.stage_recipes(), setup.layout
        lora = next((stage for stage in stages if isinstance(stage.train, TrainLora)), None)
        self.adapter = None
        self.merge = True
        if lora is not None:
            assert isinstance(lora.train, TrainLora)
            self.adapter = Adapter(trained.model, trained.trained)
            # The base of an adapter must be there for users; a control with constants has one for the run alone.
            self.merge = lora.train.merge or variant not in ("operated", "untouched")
        self.names: list[str] = []
        self.changed: dict[str, Any] = {}
        if not self.merge:
            return  # the adapter has all trained parameters
        model = merged(trained.model)
        own = [name for name, _ in model.named_parameters()]
        names = {name for stage in stages for name in trained_names(stage, layout, own, variant)}
        if lora is not None:
            assert isinstance(lora.train, TrainLora)
            targets = lora_targets(lora.train, layout, linear_names(model), layout.chosen(lora))
            names |= {f"{target}.weight" for target in targets}
        self.names = [name for name in own if name in names]
        self.changed = {name: tensor.to("cpu") for name, tensor in changed_tensors(model, self.names).items()}

    def write(
        self,
        base: tuple[Source, Checkpoint],
        output: Path,
        record: Record,
        *,
        address: str | None = None,
        force: bool = False,
    ) -> None:
        """Write a full checkpoint, with a copy of the adapter in it, or the adapter alone.

        Args:
            base: the model that was trained, with the tensors of the same names.
            output: the new folder.
            record: of the training.
            address: how PEFT finds the base of an adapter alone.
            force: replace an earlier output of this tool.

        Raises:
            CheckpointError: a trained tensor is not in the base or has another shape; or the disk is full.
            UsageError: as `check_output`.
        """
        source, checkpoint = base
        own = self.adapter
        if self.merge:
            copy = None if own is None else partial(own.write, source=source, checkpoint=checkpoint)
            write_result(checkpoint, output, self.changed, replace(record, adapter=copy), force=force)
        else:
            assert own is not None
            alone = partial(own.write, source=source, checkpoint=checkpoint, base=address)
            write_adapter(checkpoint, output, alone, record, force=force)

    @property
    def changes_weights(self) -> bool:
        """Whether weights of the source were trained, and are written."""
        return any(not is_operation(name) for name in self.names)


def merged(model: nn.Module) -> Any:
    """The model with its adapter merged into the weights."""
    unmerged: Any = model
    return unmerged.merge_and_unload(safe_merge=True) if hasattr(model, "merge_and_unload") else model
