"""Blocks of keys without an accepted key, and the share of them that a bound on their best cosine finds.

    python -m bench.bounds SCREENED --text TEXT --length 1024 --out docs/results/data/bounds.json

All layers and query heads of a screened checkpoint are divided into blocks of queries and keys. Of the blocks that
windows leave, the table has the share in which no key passes its threshold (the most that any bound can find), and the
share that each bound finds:

- sphere: the angle to the mean direction of the block's keys, minus the widest angle between this direction and a key;
  or the product with their mean, plus the greatest distance from the mean;
- box: the least and the greatest value of each dimension;
- pair: the angle between the mean directions of queries and keys, minus the widest angle of each.

``--raised`` raises all thresholds, to show from which threshold on a bound would find blocks.
"""

from __future__ import annotations

from typing import Any

from bench.harness import arguments, report

SIZES = ((128, 128), (64, 64), (64, 16), (1, 64), (1, 16))
FOUND = ("empty", "sphere", "box", "pair")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text", required=True)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--raised", default="0,0.1,0.2,0.4")
    options = parser.parse_args()
    from surgery.data import read_documents
    from surgery.loading import RunOptions, load_model, load_tokenizer

    model = load_model(options.model, RunOptions(dtype="float32"))
    (document,) = read_documents([options.text])
    tokens = load_tokenizer(options.model)(document.text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(tokens) < options.length or options.length % max(SIZES)[0]:
        parser.error(
            f"--length {options.length}: a multiple of {max(SIZES)[0]}, at most the text's {len(tokens)} tokens"
        )
    layers = observed(model, tokens[: options.length])
    rows = []
    for raised in map(float, options.raised.split(",")):
        rows += measure(layers, raised)
    report("bounds", rows, options.out)


def observed(model: Any, tokens: list[int]) -> list[tuple[Any, Any, Any]]:
    """For each screened layer: its module, and unit queries and keys ``(query heads, tokens, head_dim)``."""
    import torch
    from torch.nn.functional import normalize

    found: list[tuple[Any, Any, Any]] = []
    relevance = type(next(one for one in model.modules() if hasattr(one, "screening")).screening).relevance

    def keeping(screening: Any, query: Any, key: Any) -> Any:
        each = query.shape[1] // key.shape[1]
        parts = (normalize(one[0].float(), dim=-1) for one in (query, key.repeat_interleave(each, 1)))
        found.append((screening, *parts))
        return relevance(screening, query, key)

    ids = torch.tensor([tokens], device=model.device)
    # With a 4-D mask one call receives all queries and keys.
    mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool, device=model.device).tril()[None, None]
    modules = {one.screening for one in model.modules() if hasattr(one, "screening")}
    for module in modules:
        module.relevance = lambda query, key, module=module: keeping(module, query, key)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
    finally:
        for module in modules:
            del module.relevance
    return _joined(found)


def _joined(found: list[tuple[Any, Any, Any]]) -> list[tuple[Any, Any, Any]]:
    """Join the blocks of queries of each layer; the last block holds all keys."""
    import torch

    layers: dict[Any, tuple[list[Any], Any]] = {}
    for screening, query, key in found:
        layers.setdefault(screening, ([], None))
        layers[screening] = ([*layers[screening][0], query], key)
    return [(screening, torch.cat(queries, 1), key) for screening, (queries, key) in layers.items()]


def measure(layers: list[tuple[Any, Any, Any]], raised: float) -> list[dict[str, Any]]:
    import torch

    counts = {size: dict.fromkeys(("all", "left", *FOUND), 0) for size in SIZES}
    rejected = keys = 0
    for screening, query, key in layers:
        number = torch.arange(query.shape[1], device=query.device)
        distance = number[:, None] - number
        threshold, _, log2_window = screening._of_all_heads()
        threshold = threshold + raised
        first = number < screening.sinks
        causal = distance >= 0
        near = (screening._inside(distance, log2_window) | first) & causal
        relevance = query @ key.transpose(-1, -2)
        accepted = near & ((relevance > threshold) | first)
        rejected += int((causal & ~accepted).sum())
        keys += int(causal.sum()) * len(query)
        for size in SIZES:
            rows, columns = size
            left = _any(near, *size)
            counts[size]["all"] += int(_any(causal[None], *size).sum()) * len(query)
            counts[size]["left"] += int(left.sum())
            counts[size]["empty"] += int((left & ~_any(accepted, *size)).sum())
            holds_first = (torch.arange(left.shape[-1], device=left.device) * columns) < screening.sinks
            for name, bound in _bounds(query, key, rows, columns).items():
                counts[size][name] += int((left & (bound <= threshold) & ~holds_first).sum())
    return [
        {
            "thresholds raised by": raised,
            "keys rejected": rejected / keys,
            "queries x keys": f"{rows} x {columns}",
            "left by windows": count["left"] / count["all"],
            **{name: count[name] / count["left"] for name in FOUND},
        }
        for (rows, columns), count in counts.items()
    ]


def _any(pairs: Any, rows: int, columns: int) -> Any:
    length = pairs.shape[-1]
    return pairs.reshape(-1, length // rows, rows, length // columns, columns).any(-1).any(2)


def _bounds(query: Any, key: Any, rows: int, columns: int) -> dict[str, Any]:
    """Upper bounds of the best cosine of each block, ``(heads, blocks of queries, blocks of keys)``."""
    from torch.nn.functional import normalize

    heads, length, size = query.shape

    def directions(vectors: Any, count: int) -> tuple[Any, Any, Any]:
        blocks = vectors.view(heads, length // count, count, size)
        mean = normalize(blocks.mean(2), dim=-1)
        return blocks, mean, (blocks * mean[:, :, None]).sum(-1).amin(-1).clamp(-1, 1).acos()

    def greatest(of_query: Any) -> Any:
        return of_query.view(heads, length // rows, rows, -1).amax(2)

    blocks, mean, wide = directions(key, columns)
    _, query_mean, query_wide = directions(query, rows)
    angle = (query @ mean.transpose(-1, -2)).clamp(-1, 1).acos()
    centre = blocks.mean(2)
    radius = (blocks - centre[:, :, None]).norm(dim=-1).amax(-1)
    sphere = (angle - wide[:, None]).clamp(min=0).cos().minimum(query @ centre.transpose(-1, -2) + radius[:, None])
    low, high = blocks.amin(2), blocks.amax(2)
    box = query.clamp(min=0) @ high.transpose(-1, -2) + query.clamp(max=0) @ low.transpose(-1, -2)
    apart = (query_mean @ mean.transpose(-1, -2)).clamp(-1, 1).acos()
    pair = (apart - query_wide[:, :, None] - wide[:, None]).clamp(min=0).cos()
    return {"sphere": greatest(sphere), "box": greatest(box), "pair": pair}


if __name__ == "__main__":
    main()
