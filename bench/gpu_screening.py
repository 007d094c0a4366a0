"""Screened attention on a GPU against FlashAttention (through SDPA) and plain FlexAttention, at long lengths.

    python -m bench.gpu_screening --lengths 32768,100000 --out docs/results/data/gpu_screening.json

One attention layer runs on random queries, keys and values (9 query heads, 3 key-value heads, size 64), causal, without
gradients. Four kernels take turns in one run: FlashAttention, FlexAttention with a causal block mask, screening in
FlexAttention, and screening in bands. First, at 2048 tokens, both screened kernels are compared with an additive mask.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from bench.bands import GROUPS, HEADS, SETTINGS, SIZE, kept_blocks, layer, tensors
from bench.harness import report
from surgery.evaluation.speed.stopwatch import interleaved, ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="32768,100000")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    parser.add_argument(
        "--block-elements", type=int, default=2**26, help="pairs of query and key in one block of bands"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        parser.error("no GPU: torch sees no CUDA device. On a CPU, run `python -m bench.bands`.")
    from surgery.operations.screening.modeling import blocks

    blocks.BLOCK_ELEMENTS = options.block_elements
    name = torch.cuda.get_device_name()
    print(
        f"{name}, CUDA {torch.version.cuda}, {options.dtype}; greatest difference from the mask: {check()}", flush=True
    )
    rows = []
    for length in map(int, options.lengths.split(",")):
        for opened, window in SETTINGS:
            for threshold in (-3.0, 0.0):
                if opened < GROUPS or threshold > -1:
                    row = measure(length, opened, window, threshold, options.repeats, options.dtype)
                    rows.append({"gpu": name, **row})
                    print(rows[-1], flush=True)
    report("gpu_screening", rows, options.out)


def screened(backend: str, module: Any, query: Any, key: Any, value: Any, n: Any, mask: Any) -> Any:
    """Output ``(1, queries, heads, SIZE)`` of the named backend."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from surgery.runtime import VISIBLE_KEYS, operated_attention

    given = {"scaling": SIZE**-0.5, VISIBLE_KEYS: n}
    return operated_attention(backend, sdpa_attention_forward, None, module, query, key, value, mask, **given)[0]


def block_mask(length: int) -> Any:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask

    create = torch.compile(create_block_mask)
    return create(lambda b, h, i, j: i >= j, 1, None, length, length, device="cuda")


def check(length: int = 2048) -> dict[str, float]:
    """Greatest difference of each kernel from an additive mask over all pairs, in float32."""
    import torch

    query, key, value, n = tensors(length, "cuda", "float32")
    module = layer(1, 256, 0.0, "cuda")
    dense = torch.ones(length, length, dtype=torch.bool, device="cuda").tril()[None, None]
    masks = {"flex_attention": ("flex_attention", block_mask(length)), "bands": ("sdpa", None)}
    with torch.no_grad():
        expected = screened("sdpa", module, query, key, value, n, dense)
        return {
            way: (screened(backend, module, query, key, value, n, mask) - expected).abs().max().item()
            for way, (backend, mask) in masks.items()
        }


def measure(length: int, opened: int, window: int, threshold: float, repeats: int, dtype: str) -> dict[str, Any]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import flex_attention

    query, key, value, n = tensors(length, "cuda", dtype)
    module, mask = layer(opened, window, threshold, "cuda"), block_mask(length)
    each = HEADS // GROUPS
    # The kernels need a power of two of query heads per key-value head: keys are repeated, outside the timing.
    whole_key, whole_value = (one.repeat_interleave(each, 1).contiguous() for one in (key, value))
    compiled = torch.compile(flex_attention)

    def flash() -> Any:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(query, whole_key, whole_value, is_causal=True)

    ways = {
        "flash": flash,
        "flex": lambda: compiled(query, whole_key, whole_value, block_mask=mask),
        "screened in flex": lambda: screened("flex_attention", module, query, key, value, n, mask),
        "screened in bands": lambda: screened("sdpa", module, query, key, value, n, None),
    }

    def synchronised(way: Any) -> Any:
        def run() -> None:
            with torch.no_grad():
                way()
            torch.cuda.synchronize()

        return run

    seconds = interleaved({name: synchronised(way) for name, way in ways.items()}, repeats)
    return {
        "tokens": length,
        "open groups": f"{opened} of {GROUPS}",
        "window": window or "none",
        "threshold": "in windows" if threshold > -1 else "none",
        "blocks kept": kept_blocks(length, opened, window),
        **{f"{name} s": statistics.median(seconds[name]) for name in ways},
        **{f"{name} / flash": ratio(seconds, name, "flash") for name in ways if name != "flash"},
    }


if __name__ == "__main__":
    main()
