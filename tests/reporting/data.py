"""Results as plain data, made up: reporting knows nothing of models."""

from __future__ import annotations

import json
from typing import Any

MULTIPLIERS = (1, 16, 256, 4096, 8192)


def _estimate(value: float, spread: float | None) -> dict[str, float | None]:
    if spread is None:
        return {"value": value, "low": None, "high": None}
    return {"value": value, "low": value - spread, "high": value + spread}


def _bucket(first: int, last: int, change: float, verdict: str, spread: float | None) -> dict[str, Any]:
    return {
        "first": first,
        "last": last,
        "tokens": 8 * (last - first + 1),
        "sequences": 8,
        "loss": _estimate(2.5 + change, 0.1),
        "perplexity": 12.25,
        "base_loss": _estimate(2.5, 0.1),
        "base_perplexity": 12.18,
        "difference": _estimate(change, spread),
        "verdict": verdict,
    }


def model(name: str, *, learned: bool) -> dict[str, Any]:
    layers, heads = 6, 4
    scale = [[0.02 * (layer - head) for head in range(heads)] for layer in range(layers)]
    numbers = {
        "name": "ssmax",
        "form": "anchored",
        "reference_length": 4096,
        "layers": list(range(layers)),
        "heads": list(range(heads)),
        "start": {"scale": 0.0},
        "scale": scale,
        "bias": [],
        "moved_mean": 0.04,
        "moved_most": 0.1,
        "multipliers": [
            {
                "n": n,
                "smallest": 0.5,
                "median": 1.0,
                "largest": 1.5,
                "values": [[1 + s * n / 8192 for s in row] for row in scale],
            }
            for n in MULTIPLIERS
        ],
        "negative_heads": [{"layer": 5, "head": 0, "first": 1, "last": 12}],
    }
    return {
        "name": name,
        "commit": None,
        "model_type": "surgery_llama" if learned else "llama",
        "parameters": 134515278,
        "trained_length": 8192,
        "dtype": "float32",
        "device": "cpu",
        "attn_implementation": "sdpa",
        "tokens_per_second": 412.0,
        "seconds": 10.0,
        "plan": "0123abcd" if learned else None,
        "operations": ["ssmax anchored"] if learned else [],
        "learned": [numbers] if learned else [],
    }


def result(
    name: str = "small-ssmax", base: str | None = "small", change: float = 0.02, word: str = "lost"
) -> dict[str, Any]:
    """A result of the shape that ``EvaluationResult.to_dict()`` gives."""
    spread = None if word == "undecided" else 0.001
    edges = [(1, 64), (65, 128), (129, 1023)]
    buckets = [_bucket(first, last, change, word, spread) for first, last in edges]
    overall = _bucket(1, 1023, change, word, spread)
    curve = [
        {"first": step, "last": step, "tokens": 8, "loss": 3 - step / 1023, "base_loss": 3.01 - step / 1023}
        for step in range(1, 1024, 31)
    ]
    if base is None:
        for part in (*buckets, overall):
            part.update(base_loss=None, base_perplexity=None, difference=None, verdict=None)
        for point in curve:
            point["base_loss"] = None
    data = {
        "result_schema": 1,
        "model": model(name, learned=True),
        "against": None if base is None else model(base, learned=False),
        "data": {
            "length": 1024,
            "longest": 1024,
            "shortest": 64,
            "sequences": 8,
            "predictions": 8184,
            "left_out": 17,
            "unread": 0,
            "prefix": [],
            "fingerprint": "f" * 64,
            "texts": [{"name": "texts/one.txt", "tokens": 9000, "sequences": 8, "left_out": 17}],
        },
        "overall": overall,
        "buckets": buckets,
        "curve": curve,
        "interval": {"method": "percentile bootstrap over sequences", "level": 0.95, "samples": 2000, "seed": 0},
        "verdict": None
        if base is None
        else {"word": word, "sentence": f"The loss changed by {change:+.4f}.", "margin": 0.005},
        "warnings": ["Measure more text."],
    }
    return json.loads(json.dumps(data, allow_nan=False))


HISTORY = [
    {
        "label": "scale",
        "rows": [
            *(
                {"step": step, "tokens": step * 768, "loss": 3 - step / 40, "learning_rates": {"scale": 0.01}}
                for step in range(1, 31)
            ),
            {"step": 15, "held_out_loss": 2.7},
            {"step": 16, "loss": float("nan")},
        ],
    }
]
