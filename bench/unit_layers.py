"""Layers that suit a screening unit: each layer alone as a unit, and as a window of as many keys, without training.

    python -m bench.unit_layers MODEL --calibrate 'observe/*.txt' --text 'measure/*.txt' [--out FILE.json]

All other layers keep attention. The window keeps softmax, the first keys, and as many keys as the layer's unit accepts.
Where a layer looks for content instead of near tokens, the unit loses less than the window. One passage is taken from
each text, from token 1,024 on.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from bench.harness import arguments, passages, report
from bench.units import fit_units, window_of


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--calibrate", nargs="+", required=True, help="texts to fit units on")
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--observe", type=int, default=6)
    options = parser.parse_args()
    import torch

    import surgery
    from surgery.anatomy import read_anatomy
    from surgery.checkpoint import open_checkpoint
    from surgery.evaluation.loss.token_losses import token_losses
    from surgery.loading import RunOptions, load_model, load_tokenizer, operation_modules

    tokenizer = load_tokenizer(options.model)
    measured = [torch.tensor([tokens]) for _, tokens in passages(tokenizer, options.text, options.length)]
    every = list(range(len(read_anatomy(open_checkpoint(options.model)).layers)))
    options.layers = every
    fitted = fit_units(options)
    kept = {layer.layer: 1 - sum(layer.rejected) / len(layer.rejected) for layer in fitted.layers}
    windows = {layer: window_of(share, options.length) for layer, share in kept.items()}

    def loss(model: Any) -> float:
        return sum(float(token_losses(model, ids).double().mean()) for ids in measured) / len(measured)

    rows: dict[int, dict[str, Any]] = {layer: {"layer": layer, "keys kept": kept[layer]} for layer in every}
    starts: dict[str, dict[str, Any]] = {
        "unit": {"form": "unit", "calibration": fitted},
        "window": {"layers": every, "open": True},
    }
    for name, given in starts.items():
        with tempfile.TemporaryDirectory() as folder:
            start = surgery.convert(options.model, "screening", **given, output=Path(folder) / name, mode="link").output
            model: Any = load_model(start, RunOptions(dtype="float32"))
        modules: list[Any] = list(operation_modules(model).values())
        for module in modules:
            module.enabled = False
        before = loss(model)
        for layer, module in zip(every, modules, strict=True):
            module.enabled = True
            if name == "window":
                with torch.no_grad():
                    module.log2_window.fill_(math.log2(windows[layer]))
            rows[layer][name] = loss(model) - before
            module.enabled = False
            print(rows[layer], flush=True)
    found = sorted(rows.values(), key=lambda row: row["unit"] - row["window"])
    report("unit-layers", found, options.out)


if __name__ == "__main__":
    main()
