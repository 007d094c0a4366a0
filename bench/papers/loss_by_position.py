"""Loss far beyond the trained length: the six models of the paper of SSMax on text (arXiv 2501.19399, figure 4).

python -m bench.papers.loss_by_position TEXTS... --state FOLDER [--scale cpu] [--seeds 3] [--out FILE]

Each model is trained on windows of the trained length, and measured on held-out documents of 16 times that length,
with RoPE's base as trained and times 50, without further training. The loss is the mean over the positions between two
powers of two times the trained length. An interrupted run is continued by the same command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench.harness import report
from bench.papers.configurations import NAMES, Trainer
from bench.papers.runs import Scale, arguments, device_of, kept, load, raise_theta, scale_of, spread
from bench.papers.texts import Texts

TIMES = (1, 2, 4, 8, 16)
THETA_FACTORS = (1, 50)


@torch.no_grad()
def losses(model: Any, tokens: list[int]) -> torch.Tensor:
    """Loss of each token but the first, in nats, ``(tokens - 1,)``."""
    ids = torch.tensor([tokens], device=model.device)
    logits = model(ids).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").cpu()


def measure(folder: Path, texts: Texts, scale: Scale, device: str) -> list[dict[str, Any]]:
    """Mean loss by factor of theta and by position."""
    longest = TIMES[-1] * scale.length
    passages = texts.passages(longest, min(scale.trials, 16))
    found = []
    for factor in THETA_FACTORS:
        model = load(folder, device).eval()
        raise_theta(model, factor)
        mean = torch.stack([losses(model, tokens) for tokens in passages]).mean(0)
        for first, last in zip((0, *TIMES), TIMES, strict=False):
            part = mean[first * scale.length : last * scale.length]
            found.append({"theta": factor, "from": first, "to": last, "loss": float(part.mean())})
    return found


def main(given: list[str] | None = None) -> list[dict[str, Any]]:
    """Train and measure what is left; report what is finished."""
    parser = arguments(__doc__, picture=False)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    options = parser.parse_args(given)
    scale, size = scale_of(options)
    steps = scale.steps
    texts = Texts(options.texts, options.state, scale.vocabulary)
    device = device_of(options)
    units: dict[str, list[list[dict[str, Any]]]] = {}
    for seed in range(options.seeds):
        folder = options.state / f"loss-{size}" / str(seed)
        rows = texts.rows(scale, steps, seed)
        trainer = Trainer(scale, steps, rows, texts.vocabulary, folder, seed=seed, device=options.device)
        for name in options.models:
            found = kept(
                folder / f"{name}.json",
                lambda name=name, trainer=trainer: measure(trainer.model(name), texts, scale, device),
            )
            units.setdefault(name, []).append(found)
            print(f"seed {seed} {name}: " + " ".join(f"{one['to']}x {one['loss']:.3f}" for one in found), flush=True)
    table = [
        {
            "model": name,
            "theta": one["theta"],
            "positions": f"{one['from']} to {one['to']} x {scale.length}",
            **spread([seed[number]["loss"] for seed in seeds]),
            "seeds": len(seeds),
        }
        for name, seeds in units.items()
        for number, one in enumerate(seeds[0])
    ]
    report("papers/loss_by_position", table, options.out)
    return table


if __name__ == "__main__":
    main()
