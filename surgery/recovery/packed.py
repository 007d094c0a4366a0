"""What cannot be trained of a model whose weights are quantized: they hold no gradients and take no sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgery.errors import PlanRefusedError
from surgery.recovery.recipe import Recipe, TrainLora

_HINT = "Set train.what to scale+lora with merge: false (the output is an adapter), or use the unquantized checkpoint."


def check_packed(stage: Recipe, config: Mapping[str, Any]) -> None:
    """Refuse a stage that would change quantized weights.

    Raises:
        PlanRefusedError: it would, with what can be done instead.
    """
    method = quantization(config)
    if method is None:
        return
    if stage.train.what == "full":
        raise PlanRefusedError(f"train.what: full: the model's weights are quantized ({method}).", hint=_HINT)
    if isinstance(stage.train, TrainLora) and stage.train.merge:
        raise PlanRefusedError(
            f"train.merge: the model's weights are quantized ({method}), so a low-rank change cannot be added to them.",
            hint=_HINT,
        )


def check_loaded(model: Any, has_adapter: bool) -> None:
    """Refuse a model that was loaded with its weights packed and has no adapter: the Trainer does not train it.

    Raises:
        PlanRefusedError: it is.
    """
    if getattr(model, "is_quantized", False) and not has_adapter:
        raise PlanRefusedError(
            "train.what: scale: the model's weights are quantized and stay so in memory, and transformers' Trainer "
            "trains such a model only with an adapter.",
            hint=_HINT,
        )


def quantization(config: Mapping[str, Any]) -> str | None:
    """The method by which the weights are quantized, as config.json names it; None where they are not."""
    settings = config.get("quantization_config")
    if settings is None:
        return None
    return str(settings.get("quant_method", "unknown")) if isinstance(settings, Mapping) else "unknown"
