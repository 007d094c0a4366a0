"""The multiplier that a model learns freely: p_n for each n comes out as a1 ln n + a2 (arXiv 2501.19399, section 3.1).

python -m bench.papers.free_multiplier TEXTS... --state FOLDER [--scale cpu] [--seeds 3] [--out FILE] [--picture FILE]

Attention is softmax((s p_n + b) z), with s and b for each head and one number p_n for each n, shared by all layers and
heads; all start so that the multiplier is 1. The fit leaves out n = 1, whose weight is 1 in any case. R^2 of ln n is
compared with that of n and of the root of n.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import surgery
from bench.harness import report
from bench.papers.runs import Scale, arguments, draw_wider, fit, kept, load, scale_of, spread
from bench.papers.texts import Texts
from surgery.loading import operation_modules

SHAPES = {"ln n": np.log, "root of n": np.sqrt, "n": np.asarray}


class FreeMultiplier(nn.Module):
    """s p_n + b in place of SSMax's s ln n."""

    enabled = True
    scales_query = True
    scales_output = False

    def __init__(self, p: nn.Parameter, heads: int) -> None:
        super().__init__()
        self.p = p
        self.s = nn.Parameter(torch.ones(heads))
        self.b = nn.Parameter(torch.zeros(heads))

    def attend(self, call: Any) -> None:
        """Leave the attention to the backend."""

    def scale_query(self, query: torch.Tensor, visible_keys: torch.Tensor) -> torch.Tensor:
        """The query times s p_n + b.

        Args:
            query: ``(batch, heads, queries, head_dim)``.
            visible_keys: n, ``(batch or 1, queries)``.
        """
        p = self.p[visible_keys.long() - 1].unsqueeze(1).unsqueeze(-1)
        return query * (self.s.view(-1, 1, 1) * p + self.b.view(-1, 1, 1))


def free_model(folder: Path, length: int) -> Any:
    """The model in ``folder``, made with SSMax, with a free multiplier in its place."""
    model = load(folder)
    p = nn.Parameter(torch.ones(length))
    for path, module in operation_modules(model).items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, FreeMultiplier(p, int(getattr(module, "num_heads"))))  # noqa: B009
    return model


def learned(texts: Texts, scale: Scale, steps: int, folder: Path, seed: int, device: str) -> list[float]:
    """p_n after the training, for n = 1..length - 1; the last token of a row predicts nothing, so p_length stays."""
    start = folder / "new"
    if not start.is_dir():
        sizes = {"layers": scale.layers, "heads": scale.heads, "width": scale.width, "length": scale.length}
        surgery.new("ssmax", start, vocab_size=texts.vocabulary, seed=seed, **sizes)
    model = free_model(start, scale.length)
    draw_wider(model)
    fit(model, texts.rows(scale, steps, seed), scale, steps, folder / "run", seed=seed, device=device)
    p = next(module.p for module in model.modules() if isinstance(module, FreeMultiplier))
    return [float(value) for value in p.detach().cpu()[:-1]]


def fitted(p: list[float], shape: str) -> dict[str, float]:
    """a1, a2 and R^2 of p_n = a1 f(n) + a2, by least squares over n = 2..length - 1."""
    n = np.arange(2, len(p) + 1, dtype=float)
    values = np.asarray(p[1:])
    design = np.stack([SHAPES[shape](n), np.ones_like(n)], axis=1)
    (a1, a2), *_ = np.linalg.lstsq(design, values, rcond=None)
    rest = values - design @ np.array([a1, a2])
    return {"a1": float(a1), "a2": float(a2), "R2": float(1 - rest.var() / values.var()) if values.var() else math.nan}


def draw_picture(found: list[list[float]], path: Path) -> None:
    """Draw p_n over ln n for each seed, with the fit of the first."""
    from surgery.reporting.theme import LIGHT, drawn_in, grid, new_figure, to_png

    with drawn_in(LIGHT):
        figure = new_figure(height=3.4)
        axes = figure.subplots()
        grid(axes, LIGHT)
        n = np.arange(2, len(found[0]) + 1)
        for seed, p in enumerate(found):
            axes.plot(n, p[1:], ".", markersize=3, color=LIGHT.series[seed % len(LIGHT.series)], label=f"seed {seed}")
        line = fitted(found[0], "ln n")
        axes.plot(n, line["a1"] * np.log(n) + line["a2"], color=LIGHT.base, label="a1 ln n + a2, seed 0")
        axes.set_xscale("log", base=2)
        ticks = [2**power for power in range(1, len(found[0]).bit_length() + 1)]
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.set_xlabel("n, keys that a query sees")
        axes.set_ylabel("learned p_n")
        axes.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_png(figure, LIGHT))


def main(given: list[str] | None = None) -> list[dict[str, Any]]:
    """Train what is left, fit, report."""
    parser = arguments(__doc__)
    parser.add_argument("texts", nargs="+")
    options = parser.parse_args(given)
    scale, size = scale_of(options)
    steps = scale.steps
    texts = Texts(options.texts, options.state, scale.vocabulary)
    found = []
    for seed in range(options.seeds):
        folder = options.state / f"free-{size}" / str(seed)
        p = kept(
            folder / "p.json",
            lambda folder=folder, seed=seed: learned(texts, scale, steps, folder, seed, options.device),
        )
        found.append(p)
        print(f"seed {seed}: {fitted(p, 'ln n')}", flush=True)
    rows = []
    for shape in SHAPES:
        fits = [fitted(p, shape) for p in found]
        rows += [
            {"fit": f"a1 {shape} + a2", "number": key, **spread([one[key] for one in fits]), "seeds": len(fits)}
            for key in ("a1", "a2", "R2")
        ]
    report("papers/free_multiplier", rows, options.out)
    if options.picture is not None:
        draw_picture(found, options.picture)
    return rows


if __name__ == "__main__":
    main()
