"""A model with windows and no thresholds against its source: time to the first token, time per token, and the cache.

    python -m bench.windows MODEL --text TEXT --lengths 1024,2048,4096,8192 --out docs/results/data/windows.json

Every key-value group has the same window; every N-th group of all layers is open (``--open-every N``). Both models run
with sdpa, the source with transformers' own cache, the other with a windowed cache. They take turns.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import surgery
from bench.harness import arguments, report


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text", required=True)
    parser.add_argument("--lengths", default="1024,2048,4096,8192")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--open-every", type=int, default=4, help="0: no group is open")
    parser.add_argument("--tokens", type=int, default=8, help="decoded in one turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    from surgery.data import read_documents
    from surgery.loading import RunOptions, load_model, load_tokenizer

    (document,) = read_documents([options.text])
    ids = load_tokenizer(options.model)(document.text, add_special_tokens=False, verbose=False)["input_ids"]
    with tempfile.TemporaryDirectory() as folder:
        out = surgery.convert(
            options.model, "screening", layers="all", open=True, output=Path(folder) / "windows", mode="link"
        ).output
        run = RunOptions(dtype=options.dtype)
        models = {"source": load_model(options.model, run), "windows": load_model(out, run)}
        set_windows(models["windows"], options.window, options.open_every)
        rows = []
        for length in map(int, options.lengths.split(",")):
            needed = length + (options.repeats + 1) * options.tokens
            if len(ids) < needed:
                parser.error(f"{options.text} has {len(ids)} tokens; {needed} are needed")
            rows.append(measure(models, ids[:needed], length, options))
            print(rows[-1], flush=True)
    report("windows", rows, options.out)


def set_windows(model: Any, window: int, open_every: int) -> None:
    """One window for every key-value group, but for every ``open_every``-th, which stays open."""
    import torch

    from surgery.loading import operation_modules

    groups = model.config.num_key_value_heads
    number = 0
    module: Any
    for module in operation_modules(model).values():
        each = module.num_heads // groups
        for group in range(groups):
            if not open_every or number % open_every:
                with torch.no_grad():
                    module.log2_window[group * each : (group + 1) * each] = math.log2(window)
            number += 1


def measure(models: dict[str, Any], tokens: list[int], length: int, options: Any) -> dict[str, Any]:
    import torch

    from surgery.evaluation.speed.stopwatch import interleaved, ratio
    from surgery.loading.caches import new_cache, with_cache
    from surgery.operations.screening.modeling import WindowedCache

    ids = torch.tensor([tokens])
    caches: dict[str, Any] = {}

    def prefill(name: str) -> Any:
        def run() -> None:
            caches[name] = WindowedCache(models[name]) if name == "windows" else new_cache(models[name])
            with torch.no_grad():
                models[name](input_ids=ids[:, :length], logits_to_keep=1, **with_cache(caches[name]))

        return run

    def decoding(name: str) -> Any:
        def run() -> None:
            with torch.no_grad():
                for _ in range(options.tokens):
                    place = caches[name].get_seq_length()
                    models[name](input_ids=ids[:, place : place + 1], **with_cache(caches[name]))

        return run

    first = interleaved({name: prefill(name) for name in models}, options.repeats)
    each = interleaved({name: decoding(name) for name in models}, options.repeats)
    everything = sum(layer.keys.nbytes + layer.values.nbytes for layer in caches["source"].layers)
    return {
        "tokens": length,
        "window": options.window,
        "open groups": f"1 in {options.open_every}" if options.open_every else "none",
        "cache": caches["windows"].nbytes() / everything,
        "s to the first token, source": statistics.median(first["source"]),
        "time to the first token": ratio(first, "windows", "source"),
        "s per token, source": statistics.median(each["source"]) / options.tokens,
        "time per token": ratio(each, "windows", "source"),
    }


if __name__ == "__main__":
    main()
