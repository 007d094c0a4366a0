"""A model as it was measured, in plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoint import Source, load_json
from surgery.checkpoint.record import CALIBRATION_NAME
from surgery.operations import OPERATIONS
from surgery.operations.learned_numbers import LearnedNumbers


@dataclass(frozen=True)
class ModelUse:
    """One model as it was measured.

    ``calibrated_on`` has the names of the texts of its calibration, below the folder that they shared.
    """

    name: str
    fingerprint: str
    commit: str | None
    model_type: str
    parameters: int
    trained_length: int | None
    dtype: str
    device: str
    attn_implementation: str
    plan: str | None
    operations: tuple[str, ...]
    learned: tuple[LearnedNumbers, ...]
    calibrated_on: tuple[str, ...] = ()


def describe(model: Any, source: Source, fingerprint: str, length: int) -> ModelUse:
    """A loaded model in plain values, with its learned parameters.

    Args:
        model: a loaded causal language model.
        source: its folder or hub model.
        fingerprint: of its files.
        length: tokens of the longest measured sequence; up to it, heads are searched for a negative multiplier.
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
        calibrated_on=_calibrated_on(source.folder),
    )


def _calibrated_on(folder: Path) -> tuple[str, ...]:
    """Names of the texts of the calibration that the checkpoint records; none if it records none."""
    path = folder / CALIBRATION_NAME
    texts = load_json(path).get("texts") if path.is_file() else None
    return tuple(map(str, texts)) if isinstance(texts, list) else ()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def learned_numbers(model: Any, length: int) -> tuple[LearnedNumbers, ...]:
    """The learned parameters of each operation of a model that adds modules; none for a plain model.

    Args:
        model: a loaded causal language model.
        length: tokens of the longest measured sequence; up to it, heads are searched for a negative multiplier.
    """
    block = getattr(model.config, "surgery", None) or {}
    found = []
    for options in block.get("operations", ()):
        operation = OPERATIONS.get(options["name"])
        if operation is None or operation.in_config_alone:
            continue
        layers = tuple(options["layers"])
        paths = [f"{block['attention'].format(layer=layer)}.{operation.name}" for layer in layers]
        modules: list[Any] = [model.base_model.get_submodule(path) for path in paths]
        chosen = options.get("heads")
        heads = tuple(chosen) if chosen is not None else tuple(range(modules[0].num_heads))
        found.append(operation.learned_numbers(modules, options, layers, heads, length))
    return tuple(found)
