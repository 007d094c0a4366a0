"""Shared parts: settings that one option scales, units whose results are kept, and one training on the engine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from surgery.data import Row
from surgery.training import TrainingData, TrainingFolder, TrainingOptions, train
from surgery.training.options import AdamW, Batch, Budget, Checkpoints, Evaluation, Guard


@dataclass(frozen=True)
class Scale:
    """The sizes of all reproductions; ``--scale`` chooses one."""

    layers: int
    heads: int
    width: int
    length: int
    steps: int
    sequences: int
    trials: int
    psi: int = 8  # of a Multiscreen model
    rate: float = 1e-3  # learning rate of Llama-like models where none is under test
    vocabulary: int = 2048  # tokens, of texts


SCALES = {
    "toy": Scale(layers=1, heads=2, width=32, length=32, steps=6, sequences=4, trials=4, psi=2),
    "minutes": Scale(
        layers=2, heads=4, width=64, length=64, steps=600, sequences=16, trials=64, psi=6, rate=3e-3, vocabulary=1024
    ),
    "cpu": Scale(layers=2, heads=4, width=128, length=256, steps=1500, sequences=16, trials=64),
    "gpu": Scale(layers=12, heads=12, width=768, length=1024, steps=20_000, sequences=64, trials=512, psi=16),
}


def arguments(description: str | None, *, picture: bool = True) -> argparse.ArgumentParser:
    """A parser with the arguments of every reproduction; ``picture``: whether it draws one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--state", type=Path, required=True, help="folder of models and finished units; another one for other texts"
    )
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="training steps, in place of those of the scale")
    parser.add_argument("--length", type=int, help="trained length, in place of that of the scale")
    parser.add_argument("--sequences", type=int, help="sequences of a step, in place of those of the scale")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="JSON file")
    if picture:
        parser.add_argument("--picture", type=Path, help="PNG file")
    return parser


def scale_of(options: argparse.Namespace, own: dict[str, dict[str, int]] | None = None) -> tuple[Scale, str]:
    """The chosen sizes with the changes of the command line, and a name for them.

    Args:
        own: the sizes of a reproduction that differ from those of the others, by scale.
    """
    changes = {name: getattr(options, name) for name in ("length", "sequences", "steps") if getattr(options, name)}
    scale = replace(SCALES[options.scale], **{**(own or {}).get(options.scale, {}), **changes})
    return scale, "-".join(map(str, (options.scale, scale.length, scale.sequences, scale.steps)))


def device_of(options: argparse.Namespace) -> str:
    """The device that measures."""
    if options.device != "auto":
        return str(options.device)
    return "cuda" if torch.cuda.is_available() else "cpu"


def kept(path: Path, work: Callable[[], Any]) -> Any:
    """The result of a unit: read if an earlier run finished it, else worked out and written."""
    if not path.is_file():
        result = work()
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".partial")
        unfinished.write_text(json.dumps(result), encoding="utf-8")
        unfinished.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def data_of(rows: Sequence[Row], length: int, name: str, held_out: Sequence[Row] = ()) -> TrainingData:
    """Rows as the engine takes them; most reproductions hold out none and measure by themselves."""
    return TrainingData({length: (tuple(rows),)}, length, tuple(held_out), len(rows), len(held_out), 0, name)


def softmax_optimizer(steps: int, lr: float) -> AdamW:
    """The optimizer of the paper of SSMax, with a constant rate after a warm-up."""
    return AdamW(lr=lr, weight_decay=0.1, betas=[0.9, 0.95], schedule="constant", warmup=min(100, steps // 4))


def fit(
    model: Any,
    rows: Sequence[Row],
    scale: Scale,
    steps: int,
    folder: Path,
    *,
    seed: int,
    device: str,
    optimizer: AdamW | None = None,
    held_out: Sequence[Row] = (),
    every: int = 0,
) -> list[dict[str, float]]:
    """Train in place; an interrupted run is resumed.

    Args:
        optimizer: by default that of the paper of SSMax. A given one is under test, so that a risen loss stops nothing.
        held_out: rows whose loss is measured during the training.
        every: steps between two measurements of ``held_out``; 0 turns them off.

    Returns:
        Trained tokens and loss of the held-out rows, for each measurement.

    Raises:
        DivergedError: the loss or the gradient is not finite.
    """
    options = TrainingOptions(
        sequence_length=scale.length,
        budget=Budget(steps=steps),
        batch=Batch(sequences=scale.sequences),
        optimizer=optimizer or softmax_optimizer(steps, scale.rate),
        guard=Guard() if optimizer is None else Guard(steps=0),
        checkpoints=Checkpoints(every=200, keep=1),
        evaluation=Evaluation(every=every, sequences=max(1, len(held_out))),
        seed=seed,
    )
    place = TrainingFolder(folder)
    begun = place.path.is_dir()
    data = data_of(rows, scale.length, folder.name, held_out if every else ())
    train(model, data, options, place, device=device, resume=begun)
    curve = [{"tokens": row["tokens"], "loss": row["held_out_loss"]} for row in place.rows() if "held_out_loss" in row]
    place.remove()
    return curve


def load(folder: Path, device: str = "cpu") -> Any:
    """A model in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).to(device)


def draw_wider(model: Any) -> None:
    """Widen the start of a new Llama-like model, in place: matrices have the variance 1 / inputs.

    transformers draws them with a deviation of 0.02 at every width. That is a sixth of this at a width of 64, where
    attention stays flat and nothing is retrieved for hundreds of steps.
    """
    for module in model.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.mul_(module.in_features**-0.5 / model.config.initializer_range)


def remove_positions(model: Any) -> None:
    """Stop the rotation of RoPE in a Llama-like model, in place: every frequency is 0.

    A large base is not enough: at every base, the first pair of dimensions turns by 1 for each token. A checkpoint does
    not keep the frequencies.
    """
    model.model.rotary_emb.inv_freq.zero_()


def raise_theta(model: Any, factor: float) -> None:
    """Multiply RoPE's base, in place: the paper does so at evaluation, without training."""
    rotary = model.model.rotary_emb
    dimensions = 2 * rotary.inv_freq.numel()
    exponents = torch.arange(0, dimensions, 2, device=rotary.inv_freq.device).float() / dimensions
    theta = model.config.rope_parameters["rope_theta"] * factor
    rotary.inv_freq.copy_(theta**-exponents)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, least and greatest value over seeds."""
    return {"mean": sum(values) / len(values), "least": min(values), "greatest": max(values)}
