"""Screening units forward and backward: blocks without the keys outside the windows, and the reference over all keys.

    python -m bench.unit_kernels --lengths 1024,2048,4096 --windows 64,512 --out docs/results/data/unit-kernels.json

One layer of units runs on random queries, keys and values (9 query heads, 3 key-value heads, size 64) in float32, with
one thread. Its numbers learn, or stay as an adapter leaves them. Both ways take turns in one run; seconds are those of
the processor. The reference is that of ``eager``, which returns the weights as well. ``--flex`` compares FlexAttention,
forward alone, with bands: on a CPU it has no backward pass, and its compilation takes up to a minute.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.bands import GROUPS, HEADS, SIZE, tensors
from bench.harness import report
from surgery.evaluation.speed.stopwatch import interleaved, ratio

FULL = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="1024,2048,4096")
    parser.add_argument("--windows", default="64,512")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--flex", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for length in map(int, options.lengths.split(",")):
        for window in map(int, options.windows.split(",")):
            rows += measure(length, window, options.repeats, options.flex)
            print(rows[-1], flush=True)
    report("unit_kernels", rows, options.out)


def layer(window: int) -> Any:
    """An attention module whose heads are all units with this window."""
    from surgery.operations.screening.modeling import Screening

    module: Any = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = HEADS // GROUPS, True
    start = {"threshold": 0.3, "softness": 0.0, "log2_window": math.log2(window), "log2_gain": 0.0, "log2_bound": 0.0}
    options = {"form": "unit", "sinks": 4, "full_window": FULL, "renormalisation": 0.0, "start": start}
    module.screening = Screening(options, HEADS)
    return module


def measure(length: int, window: int, repeats: int, flex: bool) -> list[dict[str, Any]]:
    """A row for each kind of pass."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.models.llama.modeling_llama import eager_attention_forward

    from surgery.runtime import VISIBLE_KEYS, operated_attention

    query, key, value, n = tensors(length, "cpu", "float32")
    module = layer(window)
    dense = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]

    def run(name: str, mask: Any, backward: bool) -> Callable[[], Any]:
        def work() -> Any:
            given = [one.clone().requires_grad_(backward) for one in (query, key, value)]
            backend = eager_attention_forward if name == "eager" else sdpa_attention_forward
            keywords = {"scaling": SIZE**-0.5, VISIBLE_KEYS: n}
            with torch.set_grad_enabled(backward):
                output = operated_attention(name, backend, eager_attention_forward, module, *given, mask, **keywords)[0]
            if backward:
                output.square().sum().backward()
            return output.detach()

        return work

    rows = []
    for learned in (True, False):
        module.requires_grad_(learned)
        ways = {"windows": run("sdpa", None, True), "all keys": run("eager", dense, True)}
        passes = "forward and backward, numbers " + ("learn" if learned else "stay")
        rows.append({"tokens": length, "window": window, "passes": passes, **compared(ways, repeats)})
    if flex:
        from torch.nn.attention.flex_attention import create_block_mask

        mask = create_block_mask(lambda b, h, i, j: i >= j, 1, None, length, length, device="cpu")
        ways = {"windows": run("sdpa", None, False), "flex": run("flex_attention", mask, False)}
        rows.append({"tokens": length, "window": window, "passes": "forward", **compared(ways, repeats)})
    return rows


def compared(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Medians of seconds, the ratio of the first way to the other, and how far their outputs differ."""
    outputs = [work() for work in ways.values()]
    times = interleaved(ways, repeats, warmup=0, clock=time.process_time)
    first, other = ways
    return {
        "other": other,
        "s, windows": statistics.median(times[first]),
        "s, other": statistics.median(times[other]),
        "time, windows / other": ratio(times, first, other),
        "difference": float((outputs[0] - outputs[1]).abs().max()),
    }


if __name__ == "__main__":
    main()
