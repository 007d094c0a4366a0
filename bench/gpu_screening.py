"""Screened attention on a GPU against FlashAttention (through SDPA) and plain FlexAttention, at long lengths.

    python -m bench.gpu_screening --lengths 32768,100000 --out docs/results/data/gpu_screening.json

One attention layer runs on random queries, keys and values (9 query heads, 3 key-value heads, size 64), without
gradients. First, in float32, every screened way is compared with an additive mask over all pairs; the command stops if
one differs. Then, for each share of open heads, a prefill runs in four ways, which take turns in one run:
FlashAttention, FlexAttention with a causal block mask, screening in FlexAttention (its block mask leaves out the blocks
outside the windows), and screening in bands. Last, single tokens are decoded with transformers' own cache and with
a windowed cache, in turn.

FlashAttention and FlexAttention are given keys that were repeated for each query head outside of the timing;
screening in FlexAttention repeats them itself. ``--device cpu`` runs the same code on a CPU, as a test does; its times
say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.bands import GROUPS, HEADS, SETTINGS, SIZE, kept_blocks, layer, tensors
from bench.harness import report
from surgery.evaluation.speed.stopwatch import interleaved, ratio

TOKENS = 16  # decoded in one turn
BOUND = 1e-2  # FlexAttention's float32 products may be in TF32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="32768,100000")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument(
        "--block-elements", type=int, default=2**26, help="pairs of query and key in one block of bands"
    )
    parser.add_argument("--check-length", type=int, default=2048)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    import torch

    name = "cpu"
    if options.device != "cpu":
        if not torch.cuda.is_available():
            parser.error("no GPU: torch sees no CUDA device. On a CPU, run `python -m bench.bands`.")
        name = torch.cuda.get_device_name(options.device)
    from surgery.operations.screening.modeling import blocks

    differences = check(options.check_length, options.device)
    print(f"{name}, CUDA {torch.version.cuda}, {options.dtype}; greatest difference from the mask: {differences}")
    if not max(differences.values()) < BOUND:
        raise SystemExit("a way of screening differs from the mask: its time would say nothing")
    blocks.BLOCK_ELEMENTS = options.block_elements
    rows = []
    for length in map(int, options.lengths.split(",")):
        for opened, window in SETTINGS:
            for threshold in (-3.0, 0.0):
                if opened < GROUPS or threshold > -1:
                    row = measure(length, opened, window, threshold, options)
                    rows.append({"device": name, **row})
                    print(rows[-1], flush=True)
    report("gpu_screening", rows, options.out)


def screened(backend: str, module: Any, query: Any, key: Any, value: Any, n: Any, mask: Any) -> Any:
    """Output ``(1, queries, heads, SIZE)`` of the named backend."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from surgery.runtime import VISIBLE_KEYS, operated_attention

    given = {"scaling": SIZE**-0.5, VISIBLE_KEYS: n}
    return operated_attention(backend, sdpa_attention_forward, None, module, query, key, value, mask, **given)[0]


def block_mask(length: int, device: str) -> Any:
    """FlexAttention's causal mask; compiled on a GPU, where the pairs of a long text have no room."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask

    create = create_block_mask if device == "cpu" else torch.compile(create_block_mask)
    return create(lambda b, h, i, j: i >= j, 1, None, length, length, device=device)


class Decoder:
    """One layer that decodes token after token of random queries, keys and values, with a cache that was filled."""

    def __init__(self, module: Any, tensors: tuple[Any, ...], windowed: bool) -> None:
        """``tensors``: query, key and value of the tokens before; the query is the one of every later token."""
        from transformers.cache_utils import DynamicLayer

        from surgery.operations.screening.modeling import WindowedLayer

        query, key, value = tensors
        self.module, self.windowed, self.count = module, windowed, key.shape[2]
        self.query, self.new = query[:, :, -1:], (key[:, :, -1:], value[:, :, -1:])
        screening = module.screening
        self.cache: Any = DynamicLayer()
        if windowed:
            self.cache = WindowedLayer(screening.reach(HEADS).windows, screening.sinks)
        self._add(key[:, :, :-1], value[:, :, :-1], 1)

    def _add(self, key: Any, value: Any, first: int) -> tuple[Any, Any]:
        """Cache the tokens from number ``first`` on; the keys and values of all."""
        import torch

        from surgery.operations.screening.modeling.key_store import NewTokens

        if self.windowed:
            n = torch.arange(first, first + key.shape[2], device=key.device)[None]
            early = n <= self.module.screening.sinks
            steady = key.shape[2] == 1 and not bool(early.any())
            self.cache.new_tokens = NewTokens(torch.ones_like(early), early, True, steady, True)
        found: tuple[Any, Any] = self.cache.update(key, value)
        return found

    def token(self) -> Any:
        """The output of the next token, ``(1, 1, heads, SIZE)``."""
        import torch
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        key, value = self._add(*self.new, self.count)
        n = torch.full((1, 1), float(self.count), device=self.query.device)
        self.count += 1
        if self.windowed:
            return screened("sdpa", self.module, self.query, key, value, n, None)
        return sdpa_attention_forward(self.module, self.query, key, value, None, scaling=SIZE**-0.5)[0]

    def nbytes(self) -> int:
        """Memory of the keys and values."""
        return int(self.cache.nbytes() if self.windowed else self.cache.keys.nbytes + self.cache.values.nbytes)


def check(length: int, device: str) -> dict[str, float]:
    """Greatest difference of each way from an additive mask over all pairs, in float32."""
    import torch

    query, key, value, n = tensors(length, device, "float32")
    dense = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
    causal = block_mask(length, device)
    found = {}
    with torch.no_grad():
        for name, threshold in (("windows", -3.0), ("thresholds", 0.0)):
            module = layer(1, length // 8, threshold, device)
            expected = screened("sdpa", module, query, key, value, n, dense)
            ways = {
                "flex": lambda module=module: screened("flex_attention", module, query, key, value, n, causal),
                "bands": lambda module=module: screened("sdpa", module, query, key, value, n, None),
            }
            for way, work in ways.items():
                found[f"{way}, {name}"] = (work() - expected).abs().max().item()
            token = Decoder(module, (query, key, value), windowed=True).token()
            found[f"windowed cache, {name}"] = (token - expected[:, -1:]).abs().max().item()
    return found


def measure(length: int, opened: int, window: int, threshold: float, options: Any) -> dict[str, Any]:
    """A prefill in every way, and a token with both caches."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import flex_attention

    device = options.device
    query, key, value, n = tensors(length, device, options.dtype)
    module, mask = layer(opened, window, threshold, device), block_mask(length, device)
    each = HEADS // GROUPS
    # The kernels need a power of two of query heads per key-value head: keys are repeated, outside the timing.
    whole_key, whole_value = (one.repeat_interleave(each, 1).contiguous() for one in (key, value))
    plain_flex = flex_attention if device == "cpu" else torch.compile(flex_attention)

    def flash() -> Any:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(query, whole_key, whole_value, is_causal=True)

    ways = {
        "flash": flash,
        "flex": lambda: plain_flex(query, whole_key, whole_value, block_mask=mask),
        "screened in flex": lambda: screened("flex_attention", module, query, key, value, n, mask),
        "screened in bands": lambda: screened("sdpa", module, query, key, value, n, None),
    }

    def synchronised(way: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                way()
            if device != "cpu":
                torch.cuda.synchronize()

        return run

    seconds = interleaved({name: synchronised(way) for name, way in ways.items()}, options.repeats)
    with torch.no_grad():
        decoders = {
            name: Decoder(module, (query, key, value), windowed)
            for name, windowed in (("all keys", False), ("windowed", True))
        }

    def tokens(decoder: Decoder) -> Callable[[], None]:
        return synchronised(lambda: [decoder.token() for _ in range(TOKENS)])

    turns = {name: tokens(decoder) for name, decoder in decoders.items()}
    decoding = interleaved(turns, options.repeats)
    return {
        "tokens": length,
        "open groups": f"{opened} of {GROUPS}",
        "window": window or "none",
        "threshold": "in windows" if threshold > -1 else "none",
        "blocks kept": kept_blocks(length, opened, window),
        **{f"{name} s": statistics.median(seconds[name]) for name in ways},
        **{f"{name} / flash": ratio(seconds, name, "flash") for name in ways if name != "flash"},
        "cache kept": decoders["windowed"].nbytes() / decoders["all keys"].nbytes(),
        "token, all keys s": statistics.median(decoding["all keys"]) / TOKENS,
        "token, windowed / all keys": ratio(decoding, "windowed", "all keys"),
    }


if __name__ == "__main__":
    main()
