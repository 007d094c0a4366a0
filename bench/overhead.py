"""Cost of SSMax: prefill, decoding and a training step, against the unconverted model on the same backend.

python -m bench.overhead MODEL [--repeats 7] [--out docs/results/data/overhead.json]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import surgery
from bench.harness import arguments, report
from surgery.evaluation.speed.stopwatch import interleaved, ratio
from surgery.evaluation.speed.workloads import decoding_call, prefill_call
from surgery.loading import load_model


def training_step(model: Any, length: int) -> Callable[[], Any]:
    """A call that runs forward and backward with gradients of every weight."""
    tokens = torch.randint(0, 1000, (1, length), generator=torch.Generator().manual_seed(0))

    def call() -> None:
        model.zero_grad(set_to_none=True)
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()

    return call


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        converted = surgery.convert(
            options.model, "ssmax", output=Path(folder) / "out", mode="link", start={"scale": 0.01}
        ).output
        models = {"source": load_model(options.model), "ssmax": load_model(converted)}
        cases: dict[str, tuple[int, Callable[[Any], Callable[[], Any]]]] = {
            "prefill 1024": (options.repeats, lambda model: prefill_call(model, 1024)),
            "prefill 4096": (max(5, options.repeats // 2), lambda model: prefill_call(model, 4096)),
            "decode 16 after 1024": (options.repeats, lambda model: decoding_call(model, 1024, 16)),
            "training step 512": (options.repeats, lambda model: training_step(model, 512)),
        }
        for name, (repeats, make) in cases.items():
            seconds = interleaved({key: make(model) for key, model in models.items()}, repeats)
            middle = sorted(seconds["source"])[len(seconds["source"]) // 2]
            rows.append({"case": name, "ratio": ratio(seconds, "ssmax", "source"), "source seconds": middle})
    report("overhead", rows, options.out)


if __name__ == "__main__":
    main()
