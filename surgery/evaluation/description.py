"""A loaded model in plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgery.checkpoint import Source
from surgery.evaluation.learned import learned_numbers
from surgery.evaluation.models import ModelUse

if TYPE_CHECKING:
    import torch


def describe(model: Any, source: Source, fingerprint: str, length: int) -> ModelUse:
    """What was measured, and what it learned.

    Args:
        model: a loaded causal language model.
        source: where it comes from.
        fingerprint: of its files.
        length: up to which n heads are searched for a negative multiplier.
    """
    config = model.config.get_text_config()
    block = getattr(model.config, "surgery", None) or {}
    plan = next((block[key] for key in ("plan_hash", "plan_sha256", "plan") if isinstance(block.get(key), str)), None)
    trained = getattr(config, "max_position_embeddings", None)
    return ModelUse(
        name=source.name,
        fingerprint=fingerprint,
        commit=source.commit,
        model_type=model.config.model_type,
        parameters=model.num_parameters(),
        trained_length=int(trained) if trained else None,
        dtype=str(model.dtype).removeprefix("torch."),
        device=_device_name(model.device),
        attn_implementation=str(model.config._attn_implementation),
        plan=plan,
        operations=tuple(
            " ".join(str(options[key]) for key in ("name", "form") if key in options)
            for options in block.get("operations", ())
        ),
        learned=learned_numbers(model, length),
    )


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
