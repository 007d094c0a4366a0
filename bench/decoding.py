"""Decoding with a windowed cache against transformers' own cache: memory, seconds per token, and logits.

    surgery convert --to screening MODEL --calibrate TEXTS -o SCREENED
    python -m bench.decoding SCREENED --text TEXT --lengths 1024,4096 --out docs/results/data/decoding.json

Both caches are filled with the same tokens of the text. Then the same model decodes the same following tokens with
both, one at a time; the two take turns every few tokens.

    python -m bench.decoding SCREENED --against MODEL --lengths 1024,4096,8192 --rows 2

With --against, transformers' own cache is that of the source, with its own attention. No text is needed then: both
caches are filled with random keys and values, which cost no prefill; the time does not depend on them. ``--rows 2``
adds a row of half the length, padded on the left. Seconds are those of the processor.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from bench.harness import arguments, report

TOKENS = 8  # in one turn


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text")
    parser.add_argument("--against", type=Path, help="the source")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--lengths", default="1024,4096")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    from surgery.data import read_documents
    from surgery.loading import RunOptions, load_model, load_tokenizer

    model = load_model(options.model, RunOptions(dtype="float32"))
    if options.against is not None:
        models = {"source": load_model(options.against, RunOptions(dtype="float32")), "windowed": model}
        report("decoding", [beside(models, int(length), options) for length in options.lengths.split(",")], options.out)
        return
    if options.text is None:
        parser.error("pass --text FILE or --against SOURCE")
    (document,) = read_documents([options.text])
    tokens = load_tokenizer(options.model)(document.text, add_special_tokens=False, verbose=False)["input_ids"]
    rows: list[dict[str, Any]] = []
    for length in map(int, options.lengths.split(",")):
        needed = length + (options.repeats + 1) * TOKENS
        if len(tokens) < needed:
            parser.error(f"{options.text} has {len(tokens)} tokens; {needed} are needed")
        rows.append(measure(model, tokens[:needed], length, options.repeats))
        print(rows[-1], flush=True)
    report("decoding", rows, options.out)


def measure(model: Any, tokens: list[int], length: int, repeats: int) -> dict[str, Any]:
    import torch
    from transformers import DynamicCache

    from surgery.evaluation.speed.stopwatch import interleaved, ratio
    from surgery.loading.caches import with_cache
    from surgery.operations.screening.modeling import WindowedCache

    ids = torch.tensor([tokens], device=model.device)
    caches: dict[str, Any] = {"all keys": DynamicCache(config=model.config), "windowed": WindowedCache(model)}
    logits: dict[str, list[Any]] = {name: [] for name in caches}
    with torch.no_grad():
        for cache in caches.values():
            model(input_ids=ids[:, :length], logits_to_keep=1, **with_cache(cache))

        def decoding(name: str) -> Any:
            def run() -> None:
                for _ in range(TOKENS):
                    place = caches[name].get_seq_length()
                    out = model(input_ids=ids[:, place : place + 1], **with_cache(caches[name]))
                    logits[name].append(out.logits[:, -1].float())

            return run

        seconds = interleaved({name: decoding(name) for name in caches}, repeats)
    everything = sum(layer.keys.nbytes + layer.values.nbytes for layer in caches["all keys"].layers)
    differences = [(a - b).abs().max().item() for a, b in zip(logits["all keys"], logits["windowed"], strict=True)]
    return {
        "tokens": length,
        "MiB, all keys": everything / 2**20,
        "MiB, windowed": caches["windowed"].nbytes() / 2**20,
        "windowed / all keys": caches["windowed"].nbytes() / everything,
        "s per token, all keys": statistics.median(seconds["all keys"]) / TOKENS,
        "time, windowed / all keys": ratio(seconds, "windowed", "all keys"),
        "greatest difference of a logit": max(differences),
    }


def beside(models: dict[str, Any], length: int, options: Any) -> dict[str, Any]:
    """Memory and seconds of a token after ``length`` random tokens: a windowed cache, and the source's own."""
    import torch
    from transformers import DynamicCache

    from bench.generation import cache_bytes, unequal
    from surgery.evaluation.speed.stopwatch import interleaved, ratio
    from surgery.loading.caches import with_cache
    from surgery.operations.screening.modeling import WindowedCache

    source = models["source"].config
    caches: dict[str, Any] = {"source": DynamicCache(config=source), "windowed": WindowedCache(models["windowed"])}
    _, mask = unequal(torch.zeros(length, dtype=torch.long), options.rows)
    masks = dict.fromkeys(caches, mask)
    caches["windowed"].note(mask, mask.cumsum(-1).clamp(min=1).float())
    groups, size = source.num_key_value_heads, models["source"].model.layers[0].self_attn.head_dim
    with torch.no_grad():
        for cache in caches.values():
            generator = torch.Generator().manual_seed(0)
            for layer in range(source.num_hidden_layers):
                shape = (options.rows, groups, length, size)
                cache.update(*(torch.randn(shape, generator=generator) for _ in range(2)), layer)

    def decoding(name: str, tokens: int = TOKENS) -> Any:
        def run() -> None:
            for _ in range(tokens):
                masks[name] = torch.cat([masks[name], masks[name].new_ones(options.rows, 1)], 1)
                given = {"attention_mask": masks[name], "position_ids": masks[name].sum(-1, keepdim=True) - 1}
                with torch.no_grad():
                    models[name](masks[name][:, -1:], **given, **with_cache(caches[name]))

        return run

    for name in caches:
        decoding(name, 2)()  # the first tokens make rings and spare places
    turns = {name: decoding(name) for name in caches}
    seconds = interleaved(turns, options.repeats, clock=time.process_time)
    row = {
        "tokens": length,
        "rows": options.rows,
        "cache, MiB, source": cache_bytes(caches["source"]) / 2**20,
        "cache kept": cache_bytes(caches["windowed"]) / cache_bytes(caches["source"]),
        "s per token, source": statistics.median(seconds["source"]) / TOKENS,
        "time, windowed / source": ratio(seconds, "windowed", "source"),
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
