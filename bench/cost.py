"""The time of attention inside windows against the same attention without: the model of `--save time`.

    python -m bench.cost --out surgery/operations/screening/costs.json

One attention layer of the sizes of SmolLM2-135M (9 query heads, 3 key-value heads, size 64). Prefill runs the layer on
random queries, keys and values; decoding runs a model of one small layer on a filled cache, windowed against
transformers' own. All key-value heads have the same window, no threshold. Both ways take turns in one run, on one
thread; the seconds are those of the processor, so that other programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from bench.bands import GROUPS, HEADS, SIZE, layer, tensors
from bench.harness import environment
from surgery.evaluation.speed.stopwatch import interleaved
from surgery.operations.screening.savings import BLOCK, blocks_outside, kept_keys

SINKS = 4
TOKENS = 8  # decoded in one turn
COMMAND = "python -m bench.cost --lengths {} --windows {} --out surgery/operations/screening/costs.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="1024,2048,4096,8192")
    parser.add_argument("--windows", default="128,512")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    import torch

    from surgery.operations.screening.cost import CostModel, fit_phase, to_plain

    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, float]]] = {"prefill": [], "decoding": []}
    for length in map(int, options.lengths.split(",")):
        for window in map(int, options.windows.split(",")):
            for phase, way in (("prefill", prefill), ("decoding", decoding)):
                rows[phase].append({"tokens": length, "window": window, **way(length, window, options.repeats)})
                print(phase, rows[phase][-1], flush=True)
    names = ("work", "seconds", "windowed work", "windowed seconds")
    fitted = {phase: fit_phase([tuple(row[name] for name in names) for row in found]) for phase, found in rows.items()}
    model = to_plain(CostModel(**fitted))
    print(model)
    if options.out is not None:
        content = {
            "command": COMMAND.format(options.lengths, options.windows),
            "environment": environment(),
            "model": model,
            "rows": rows,
        }
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def prefill(length: int, window: int, repeats: int) -> dict[str, float]:
    """Work in blocks and seconds of a layer without and with windows."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from surgery.runtime import VISIBLE_KEYS, operated_attention

    query, key, value, n = tensors(length, "cpu", "float32")
    plain, windowed = layer(GROUPS, 0, -3.0, "cpu"), layer(0, window, -3.0, "cpu")
    keywords = {"scaling": SIZE**-0.5, VISIBLE_KEYS: n}

    def without() -> None:
        with torch.no_grad():
            sdpa_attention_forward(plain, query, key, value, None, scaling=SIZE**-0.5)

    def within() -> None:
        with torch.no_grad():
            operated_attention("sdpa", sdpa_attention_forward, None, windowed, query, key, value, None, **keywords)

    count = -(-length // BLOCK)
    blocks = count * (count + 1) / 2
    seconds = interleaved({"without": without, "within": within}, repeats, clock=time.process_time)
    return measured(blocks, blocks * (1 - blocks_outside(window, length, SINKS)), seconds, 1)


def decoding(length: int, window: int, repeats: int) -> dict[str, float]:
    """Work in keys and seconds of a token of a model of one layer, without and with windows."""
    import torch
    from transformers import DynamicCache

    from surgery.loading.caches import with_cache
    from surgery.operations.screening.modeling import WindowedCache

    model = one_layer(window, length)
    caches: dict[str, Any] = {"without": DynamicCache(config=model.config), "within": WindowedCache(model)}
    ids = torch.zeros(1, length, dtype=torch.long)
    screening = model.model.layers[0].self_attn.screening

    def step(name: str, tokens: torch.Tensor) -> None:
        screening.enabled = name == "within"
        with torch.no_grad():
            model(input_ids=tokens, logits_to_keep=1, **with_cache(caches[name]))

    for name in caches:
        step(name, ids)

    def token(name: str) -> Any:
        return lambda: [step(name, ids[:, :1]) for _ in range(TOKENS)]

    seconds = interleaved({name: token(name) for name in caches}, repeats, clock=time.process_time)
    return measured(length, kept_keys(window, length, SINKS), seconds, TOKENS)


def one_layer(window: int, length: int) -> Any:
    """A random llama of one layer with screening whose heads all have this window."""
    import math

    from transformers import LlamaConfig, LlamaForCausalLM

    from surgery.anatomy import FAMILIES
    from surgery.runtime import operate

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=HEADS * SIZE,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=2 * length,
    )
    model = LlamaForCausalLM(config).eval()
    start = {"threshold": -3.0, "softness": 0.05, "log2_window": math.log2(window)}
    options = {"name": "screening", "form": "gated", "layers": [0], "heads": None, "sinks": SINKS}
    options |= {"full_window": 2 * length, "start": start}
    operate(model, {**FAMILIES["llama"].for_runtime, "operations": [options]})
    return model.requires_grad_(False)


def measured(work: float, windowed: float, seconds: dict[str, list[float]], times: int) -> dict[str, float]:
    """A row: the work of both ways, and the median seconds of one."""
    return {
        "work": work,
        "seconds": statistics.median(seconds["without"]) / times,
        "windowed work": windowed,
        "windowed seconds": statistics.median(seconds["within"]) / times,
    }


if __name__ == "__main__":
    main()
