"""Decoding with a windowed cache against transformers' own cache: memory, seconds per token, and logits.

    surgery convert --to screening MODEL --calibrate TEXTS -o SCREENED
    python -m bench.decoding SCREENED --text TEXT --lengths 1024,4096 --out docs/results/data/decoding.json

Both caches are filled with the same tokens of the text. Then both models decode the same following tokens one at a
time; the two take turns every few tokens.
"""

from __future__ import annotations

import statistics
from typing import Any

from bench.harness import arguments, report

TOKENS = 8  # in one turn


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text", required=True)
    parser.add_argument("--lengths", default="1024,4096")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    from surgery.data import read_documents
    from surgery.loading import RunOptions, load_model, load_tokenizer

    model = load_model(options.model, RunOptions(dtype="float32"))
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


if __name__ == "__main__":
    main()
