"""Screening units on some layers, against the same layers without attention and with a window of as many keys.

    python -m bench.units MODEL --calibrate calibration/ --text TEXTS --layers 1,5,9 --tokens 100000 [--only unit]

Tokens, seed and adapter are the same for each alternative. First every operated attention is matched to the source's
output; then the model distils the source's logits. Removed attention has no output to match, and distils for all of its
tokens. The window is the same for all heads. It keeps as many keys, including the first 4, as the units accept at their
start, at the greatest length of their calibration.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import surgery
from bench.harness import arguments, report
from bench.recovery import print_step
from surgery.loading import RunOptions
from surgery.operations.screening.calibration import CalibrationSettings, calibrate, read_calibration

ALTERNATIVES = ("unit", "window", "removed")
SINKS = 4
SHARE_OF_MATCHING = 0.3
# A gain of 2^-60 makes the output zero in float32.
NO_OUTPUT = {"threshold": 0.0, "log2_gain": -60.0}


def window_of(kept: float, length: int) -> int:
    """The narrowest window that, with the first keys of the document, keeps this share of the keys of a sequence."""
    pairs = length * (length + 1) / 2
    for window in range(1, length):
        if sum(min(query + 1, window + SINKS) for query in range(length)) / pairs >= kept:
            return window
    return length


def fit_units(options: Any) -> Any:
    """Fit the start values of units on the chosen layers."""
    unit = {"layers": options.layers, "form": "unit", "renormalisation": 0.0}
    settings = CalibrationSettings(lengths=(options.length,), observe=options.observe, hold_out=2)
    return calibrate(options.model, options.calibrate, options=unit, settings=settings, run=RunOptions(dtype="float32"))


def starts(options: Any) -> dict[str, dict[str, Any]]:
    """Arguments of `surgery.convert` for each alternative, by name."""
    fitted = read_calibration(options.calibration) if options.calibration is not None else fit_units(options)
    chosen = {"layers": [layer.layer for layer in fitted.layers]}
    rejected = [share for layer in fitted.layers for share in layer.rejected]
    kept = 1 - sum(rejected) / len(rejected)
    window = window_of(kept, max(fitted.settings["lengths"]))
    print(
        f"units keep {kept:.1%} of the keys; a window of {window} keys and the first {SINKS} keeps as many", flush=True
    )
    return {
        "unit": {"form": "unit", "calibration": fitted},
        f"window {window}": {**chosen, "start": {"log2_window": math.log2(window)}},
        "removed": {**chosen, "form": "unit", "start": NO_OUTPUT},
    }


def recipe(name: str, model: Path, output: Path, options: Any) -> dict[str, Any]:
    """The recipe of one alternative."""
    matched = round(SHARE_OF_MATCHING * options.tokens)
    stages: Sequence[tuple[str, int]] = (("match", matched), ("distill", options.tokens - matched))
    if name == "removed":
        stages = (("distill", options.tokens),)
    return {
        "model": str(model),
        "output": str(output),
        "data": {"text": list(options.text), "held_out": options.held_out, "sequence_length": options.length},
        "train": {"what": "scale+lora", "rank": 16},
        "optimizer": {"scale_lr": options.scale_lr, "lr": options.lr, "warmup": 0.1, "betas": [0.9, 0.95]},
        "stages": [{"objective": {"name": what}, "budget": {"tokens": tokens}} for what, tokens in stages],
        "evaluation": {"sequences": options.sequences},
        "checkpoints": {"every": 100_000},
        "seed": options.seed,
    }


def row_of(name: str, result: Any, tokens: int) -> dict[str, Any]:
    """The row of one run."""
    compared = result.comparison
    assert compared is not None, "nothing was held out"
    losses = {model.name: model.loss.value for model in compared.models if model.loss is not None}
    apart = compared.difference("recovered", "source")
    assert apart is not None and apart.difference is not None
    before, after = result.rejected_before, result.rejected_after
    return {
        "layers are": name,
        "keys kept": "none" if name == "removed" or before is None else f"{1 - before:.1%} -> {1 - after:.1%}",
        "tokens": tokens,
        "source": losses["source"],
        "before": result.held_out_loss_before,
        "after": losses["recovered"],
        "over source": apart.difference.value,
        "low": apart.difference.low,
        "high": apart.difference.high,
        "held-out tokens": compared.tokens,
        "documents": compared.documents,
    }


def main() -> None:
    parser = arguments(__doc__)
    fitted = parser.add_mutually_exclusive_group(required=True)
    fitted.add_argument("--calibrate", nargs="+", help="texts to fit units on")
    fitted.add_argument("--calibration", type=Path, help="a calibration.json of units, instead of --calibrate")
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--layers", help="with --calibrate")
    parser.add_argument("--only", nargs="+", choices=ALTERNATIVES, default=ALTERNATIVES)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--observe", type=int, default=6)
    parser.add_argument("--held-out", type=float, default=0.2)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--scale-lr", type=float, default=0.01)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if (options.layers is None) != (options.calibrate is None):
        parser.error("--layers goes with --calibrate")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, given) in enumerate(starts(options).items()):
            if name.split()[0] not in options.only:
                continue
            print(name, flush=True)
            start = surgery.convert(
                options.model, "screening", **given, output=Path(folder) / f"start-{number}", mode="link"
            ).output
            trained = Path(folder) / f"trained-{number}"
            result = surgery.finetune(recipe(name, start, trained, options), on_progress=print_step)
            rows.append(row_of(name, result, options.tokens))
            report("units", rows, options.out)


if __name__ == "__main__":
    main()
