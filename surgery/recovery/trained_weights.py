"""The weights of a trained model, ready to be written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgery.recovery.adapter import Adapter
from surgery.recovery.lora import linear_names, lora_targets
from surgery.recovery.model_run import RunSetup, TrainedModel
from surgery.recovery.parameters import trained_names
from surgery.recovery.result_folder import changed_tensors
from surgery.recovery.train_choice import TrainLora

if TYPE_CHECKING:
    from torch import nn


class TrainedWeights:
    """The weights of a trained model, copied out so that the model can be freed before the controls are loaded.

    Attributes:
        adapter: the adapter; None without LoRA.
        merge: whether a full checkpoint is written, not the adapter.
        names: names of the trained parameters in the merged model.
        changed: the trained tensors, by their names in the checkpoint.
    """

    def __init__(self, trained: TrainedModel, setup: RunSetup) -> None:
        stages, layout = setup.stage_recipes(), setup.layout
        lora = next((stage for stage in stages if isinstance(stage.train, TrainLora)), None)
        self.adapter = None
        self.merge = True
        if lora is not None:
            assert isinstance(lora.train, TrainLora)
            self.adapter = Adapter(trained.model, setup.source, setup.checkpoint, trained.trained)
            self.merge = lora.train.merge
        self.names: list[str] = []
        self.changed: dict[str, Any] = {}
        if not self.merge:
            return  # the adapter has all trained parameters
        model = merged(trained.model)
        own = [name for name, _ in model.named_parameters()]
        names = {name for stage in stages for name in trained_names(stage, layout, own)}
        if lora is not None:
            assert isinstance(lora.train, TrainLora)
            targets = lora_targets(lora.train, layout, linear_names(model), layout.chosen(lora))
            names |= {f"{target}.weight" for target in targets}
        self.names = [name for name in own if name in names]
        self.changed = {name: tensor.to("cpu") for name, tensor in changed_tensors(model, self.names).items()}


def merged(model: nn.Module) -> Any:
    """The model with its adapter merged into the weights."""
    unmerged: Any = model
    return unmerged.merge_and_unload(safe_merge=True) if hasattr(model, "merge_and_unload") else model
