"""Models with quantized weights. These cannot be trained or merged into; only added parameters train."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from surgery.checkpoint import Checkpoint, tensor_bytes
from surgery.errors import CheckpointError, PlanRefusedError
from surgery.recovery.recipe import Recipe
from surgery.recovery.train_choice import TrainLora
from surgery.training.progress import Progress
from surgery.training.run import TrainingRun

if TYPE_CHECKING:
    from surgery.training.trainer import StageTrainer

_HINT = "Set train.what to scale+lora with merge: false (the output is an adapter), or use the unquantized checkpoint."


def check_quantized(stage: Recipe, config: Mapping[str, Any]) -> None:
    """Refuse a stage that would change quantized weights.

    Raises:
        PlanRefusedError: it would; the hint names an alternative.
    """
    method = quantization(config)
    if method is None:
        return
    if stage.train.changes_weights:
        raise PlanRefusedError(f"train.what: full cannot train quantized weights ({method})", hint=_HINT)
    if isinstance(stage.train, TrainLora) and stage.train.merge:
        raise PlanRefusedError(
            f"train.merge: a low-rank change cannot be added to quantized weights ({method})",
            hint=_HINT,
        )


def check_loaded(model: Any) -> None:
    """Refuse a model whose quantized weights pass no gradient on.

    Raises:
        PlanRefusedError: transformers does not train through this kind of quantization.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if getattr(model, "is_quantized", False) and quantizer is not None and not quantizer.is_trainable:
        method = quantization(model.config.to_dict())
        raise PlanRefusedError(
            f"transformers cannot train through quantized weights of this kind ({method})",
            hint="Train the unquantized checkpoint.",
        )


@contextmanager
def parameters_beside(model: Any) -> Iterator[None]:
    """Hide the quantization while transformers' Trainer checks the model, within a ``with`` block.

    Trainer accepts quantized weights only with PEFT's adapters. The operation's parameters train as well: they are
    float32, beside the quantized weights, and never added to them.
    """
    hidden = "is_quantized" in getattr(model, "__dict__", {}) and model.is_quantized
    if hidden:
        model.is_quantized = False
    try:
        yield
    finally:
        if hidden:
            model.is_quantized = True


class QuantizedTrainingRun(TrainingRun):
    """A run of a model whose weights may be quantized."""

    def trainer(self, number: int, before: Progress, snapshot: dict[str, Any] | None = None) -> StageTrainer:
        """The trainer of one stage."""
        with parameters_beside(self.model):
            return super().trainer(number, before, snapshot)


@contextmanager
def renames_alone(model: Any) -> Iterator[None]:
    """Keep only the renaming of parameters to their names on disk, within a ``with`` block.

    Conversions that quantize cannot always be reverted, and learned parameters are never quantized.
    """
    from transformers.core_model_loading import WeightConverter

    before: list[Any] | None = getattr(model, "_weight_conversions", None)
    packs = getattr(model, "is_quantized", False)
    if packs and before is not None:
        model._weight_conversions = [each for each in before if not isinstance(each, WeightConverter)]
    try:
        yield
    finally:
        if packs:
            model._weight_conversions = before


def unpack_now(model: Any) -> None:
    """Make compressed-tensors unpack its weights now, before PEFT reads them."""
    import torch

    if quantization(model.config.to_dict()) == "compressed-tensors":
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))


def stay_trainable(model: Any) -> None:
    """Keep bitsandbytes from a layout of its weights that only serves inference.

    On a processor with AVX512-BF16 it switches to that layout at the first forward pass in evaluation mode, such as the
    held-out loss before training, and keeps it: no gradient would pass, and nothing would be learned.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def linear_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shape of the weight of each linear module, packed or not, by the module's full name; no weight is read.

    Raises:
        CheckpointError: the record of a quantized weight does not hold its shape.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, info in checkpoint.tensors.items():
        module, _, last = name.rpartition(".")
        if last == "weight" and len(info.shape) == 2:
            found.setdefault(module, info.shape)
        elif last == "_weight_qdata":  # torchao
            found[module] = info.shape
        elif last == "weight_shape" or last.startswith("bitsandbytes__"):
            said = bytes(tensor_bytes(checkpoint.folder / info.shard, info))
            try:
                if last == "weight_shape":  # compressed-tensors: two int64
                    rows, columns = struct.unpack("<2q", said)
                else:  # X.weight.quant_state.bitsandbytes__nf4: JSON
                    module = name.partition(".weight.")[0]
                    rows, columns = map(int, json.loads(said)["shape"])
            except (struct.error, ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{name} does not hold the shape of a quantized weight: {error}") from error
            found[module] = (rows, columns)
    return found


def quantization(config: Mapping[str, Any]) -> str | None:
    """The quantization method in config.json; None if the weights are not quantized."""
    settings = config.get("quantization_config")
    if settings is None:
        return None
    return str(settings.get("quant_method", "unknown")) if isinstance(settings, Mapping) else "unknown"
