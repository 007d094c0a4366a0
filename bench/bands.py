"""Attention in bands against SDPA: the time for each share of 128 x 128 blocks that is kept.

    python -m bench.bands --lengths 4096,8192,16384 --out docs/results/data/bands.json

One attention layer runs on random queries, keys and values (9 query heads, 3 key-value heads, size 64, as in
SmolLM2-135M). Some key-value heads are open; the others have a window, with and without a threshold inside it. The
alternative is transformers' own sdpa attention on the same tensors, in turn in the same run.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from pathlib import Path
from typing import Any

from bench.harness import report
from surgery.evaluation.speed.stopwatch import interleaved, ratio

HEADS, GROUPS, SIZE = 9, 3, 64
# Number of open key-value heads, and the window of the others.
SETTINGS = ((3, 0), (1, 256), (0, 1024), (0, 256))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="4096,8192,16384")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [
        row
        for length in map(int, options.lengths.split(","))
        for row in measure(length, options.repeats, options.device, options.dtype)
    ]
    report("bands", rows, options.out)


def tensors(length: int, device: str, dtype: str) -> tuple[Any, Any, Any, Any]:
    """Random query, key and value, ``(1, heads, length, SIZE)``, and n of each query."""
    import torch

    generator = torch.Generator(device=device).manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, length, SIZE, generator=generator, device=device).to(getattr(torch, dtype))
        for heads in (HEADS, GROUPS, GROUPS)
    )
    return query, key, value, torch.arange(1, length + 1, device=device, dtype=torch.float32)[None]


def layer(opened: int, window: int, threshold: float, device: str) -> Any:
    """An attention module whose first ``opened`` key-value heads are open; the others have a window and a threshold.

    Where all are open, the threshold is given to all of them.
    """
    import torch

    from surgery.operations.screening.modeling import Screening

    module: Any = torch.nn.Module().eval()
    module.num_key_value_groups, module.is_causal = HEADS // GROUPS, True
    start = {"threshold": -3.0, "softness": 0.05, "log2_window": 30.0}
    options = {"form": "gated", "sinks": 4, "full_window": 2**20, "start": start}
    module.screening = Screening(options, HEADS).to(device).requires_grad_(False)
    banded = slice(opened * HEADS // GROUPS, None) if opened < GROUPS else slice(0, None)
    module.screening.threshold[banded] = threshold
    if window:
        module.screening.log2_window[banded] = torch.tensor(float(window)).log2()
    return module


def measure(length: int, repeats: int, device: str, dtype: str) -> list[dict[str, Any]]:
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from surgery.runtime import VISIBLE_KEYS, operated_attention

    query, key, value, n = tensors(length, device, dtype)

    def synchronised(function: Any) -> Any:
        def run() -> None:
            with torch.no_grad():
                function()
            if device.startswith("cuda"):
                torch.cuda.synchronize()

        return run

    plain = layer(GROUPS, 0, -3.0, device)

    def sdpa() -> Any:
        return sdpa_attention_forward(plain, query, key, value, None, scaling=SIZE**-0.5)

    def screened(module: Any) -> Any:
        keywords = {"scaling": SIZE**-0.5, VISIBLE_KEYS: n}
        return operated_attention("sdpa", sdpa_attention_forward, None, module, query, key, value, None, **keywords)

    rows = []
    for opened, window in SETTINGS:
        for threshold in (-3.0, 0.0):
            if opened == GROUPS and threshold == -3.0:
                continue
            module = layer(opened, window, threshold, device)
            ways = {"sdpa": sdpa, "screened": functools.partial(screened, module)}
            seconds = interleaved({name: synchronised(way) for name, way in ways.items()}, repeats)
            rows.append(
                {
                    "tokens": length,
                    "open groups": f"{opened} of {GROUPS}",
                    "window": window or "none",
                    "threshold": "in windows" if threshold > -1 else "none",
                    "blocks kept": kept_blocks(length, opened, window),
                    "sdpa s": statistics.median(seconds["sdpa"]),
                    "screened s": statistics.median(seconds["screened"]),
                    "screened / sdpa": ratio(seconds, "screened", "sdpa"),
                }
            )
            print(rows[-1], flush=True)
    return rows


def kept_blocks(length: int, opened: int, window: int, side: int = 128) -> float:
    """Share of the causal blocks of ``side`` queries and keys that hold a key inside a window, or the first keys."""
    blocks = length // side
    every = blocks * (blocks + 1) // 2
    if not window:
        return 1.0
    reach = -(-(window - 1) // side)  # blocks before the query's own that the window touches
    near = sum(min(row, reach) + 1 + (row > reach) for row in range(blocks))
    return (opened * every + (GROUPS - opened) * near) / (GROUPS * every)


if __name__ == "__main__":
    main()
