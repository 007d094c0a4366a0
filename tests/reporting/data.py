"""Results as plain data, made up: reporting knows nothing of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from surgery.reporting import draw_report, replace_file

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
        "documents": 8,
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
        "values": {"scale": scale},
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
        "fingerprint": ("a" if learned else "b") * 64,
        "commit": None,
        "model_type": "surgery_llama" if learned else "llama",
        "parameters": 134515278,
        "trained_length": 8192,
        "dtype": "float32",
        "device": "cpu",
        "attn_implementation": "sdpa",
        "plan": "0123abcd" if learned else None,
        "operations": ["ssmax anchored"] if learned else [],
        "learned": [numbers] if learned else [],
    }


def result(
    name: str = "small-ssmax",
    base: str | None = "small",
    change: float = 0.02,
    word: str = "lost",
    *,
    everything: bool = False,
) -> dict[str, Any]:
    """A result of the shape that ``EvaluationResult.to_dict()`` gives: loss by position, or ``everything``."""
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
    use = {
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
    }
    finding = {"measure": "Loss by position", "word": word, "sentence": f"The loss changed by {change:+.4f}."}
    loss = {
        "kind": "loss",
        "title": "Loss by position, to 1,024 tokens",
        "options": {"kind": "loss", "length": 1024},
        "data": use,
        "margin": 0.005,
        "results": [{"model": 0, "overall": overall, "buckets": buckets, "curve": curve, "finding": base and finding}],
    }
    paired = base is not None
    sliding = {**loss, "kind": "sliding", "title": "Sliding window of 512 tokens"}
    sliding["results"] = [{**loss["results"][0], "buckets": [], "curve": []}]
    rest = [sliding, retrieval(paired, word), attention(paired, use), tasks(paired, word), speed(paired)]
    rest.append(generation(paired))
    data = {
        "result_schema": 2,
        "suite": "quick",
        "models": [model(name, learned=True)],
        "against": None if base is None else model(base, learned=False),
        "verdicts": [] if base is None else [{"model": 0, "word": word, "findings": [finding]}],
        "sections": [loss, *(rest if everything else ())],
        "interval": {"method": "percentile bootstrap over documents", "level": 0.95, "samples": 2000, "seed": 0},
        "environment": {"torch": "2.13.0", "surgery": "0.1.0"},
        "warnings": ["Measure more text."],
        "trainings": {},
    }
    return json.loads(json.dumps(data, allow_nan=False))


def _score(length: int | None, right: float, paired: bool, word: str) -> dict[str, Any]:
    return {
        "length": length,
        "prompts": 8,
        "exact": _estimate(right / 2, 0.1),
        "right": _estimate(right, 0.1),
        "loss": _estimate(1 - right, 0.1),
        "log_probability": _estimate(-5 * (1 - right), 0.5),
        "base_exact": _estimate(0.3, 0.1) if paired else None,
        "base_right": _estimate(0.6, 0.1) if paired else None,
        "base_loss": _estimate(0.4, 0.1) if paired else None,
        "base_log_probability": _estimate(-2.0, 0.5) if paired else None,
        "difference": _estimate(right - 0.6, 0.05) if paired else None,
        "log_probability_difference": _estimate(5 * right - 3, 0.4) if paired else None,
        "verdict": word if paired else None,
    }


def retrieval(paired: bool, word: str) -> dict[str, Any]:
    right = [[0.9, 0.5], [0.4, 0.1]]
    return {
        "kind": "retrieval",
        "title": "ABCDigits",
        "options": {"kind": "retrieval", "task": "abcdigits", "samples": 4},
        "lengths": [512, 1024],
        "depths": [0.0, 1.0],
        "prompts": 16,
        "margin": 0.01,
        "results": [
            {
                "model": 0,
                "overall": _score(None, 0.475, paired, word),
                "by_length": [_score(512, 0.7, paired, word), _score(1024, 0.25, paired, word)],
                "exact": [[1.0, 0.25], [0.0, 0.0]],
                "right": right,
                "loss": [[0.1, 0.5], [0.6, 0.9]],
                "base_exact": [[1.0, 0.5], [0.5, 0.0]] if paired else None,
                "base_right": [[0.95, 0.6], [0.5, 0.3]] if paired else None,
                "base_loss": [[0.1, 0.4], [0.5, 0.8]] if paired else None,
                "finding": None,
            }
        ],
    }


def attention(paired: bool, use: dict[str, Any]) -> dict[str, Any]:
    ranges = [[1, 1], [2, 2], [3, 4], [5, 8], [9, 1024]]

    def own(number: int, screened: bool) -> dict[str, Any]:
        by_n = [
            {
                "first": first,
                "last": last,
                "greatest": 1 / last**0.5,
                "greatest_low": 0.5 / last**0.5,
                "greatest_high": 1.0,
                "entropy": 0.5 * last**0.25,
                "first_mass": 0.4,
            }
            for first, last in ranges
        ]
        heads = [[[1 / last**0.5 for _, last in ranges] for _ in range(4)] for _ in range(6)]
        shares = [None, *([[0.1 * head for head in range(4)]] * 5)] if screened else None
        return {
            "model": number,
            "layers": list(range(6)),
            "greatest": heads,
            "entropy": heads,
            "first_mass": heads,
            "by_n": by_n,
            "rejected_keys": shares,
            "rejected_blocks": shares,
        }

    return {
        "kind": "attention",
        "title": "Attention weights by n",
        "options": {"kind": "attention", "first_tokens": 4, "block": 64},
        "data": use,
        "ranges": ranges,
        "results": [own(0, screened=True), *([own(1, screened=False)] if paired else [])],
    }


def tasks(paired: bool, word: str) -> dict[str, Any]:
    score = {
        "metric": "arc_easy: acc,none",
        "value": 0.41,
        "base_value": 0.43 if paired else None,
        "examples": 100,
        "difference": _estimate(-0.02, 0.01) if paired else None,
        "verdict": word if paired else None,
        "lower_is_better": False,
    }
    without = {**score, "metric": "wikitext: word_perplexity,none", "examples": None, "difference": None}
    commands = ["lm-eval run --model hf --model_args pretrained=small-ssmax --tasks arc_easy"]
    own = {"model": 0, "scores": [score, {**without, "verdict": None, "lower_is_better": True}], "commands": commands}
    return {
        "kind": "tasks",
        "title": "Short tasks (lm-evaluation-harness)",
        "options": {"kind": "tasks"},
        "lm_eval": "0.4.13",
        "results": [{**own, "finding": None}],
    }


def speed(paired: bool) -> dict[str, Any]:
    case = {
        "case": "prefill 1024",
        "rate": 812.5,
        "base_rate": 820.1 if paired else None,
        "time_ratio": 1.009 if paired else None,
    }
    use = {"tokens": 1024, "weights": 538_000_000, "cache": 47_000_000, "prefill": None}
    memory = [{"model": 0, **use}, *([{"model": 1, **use, "prefill": 61_000_000}] if paired else [])]
    return {
        "kind": "speed",
        "title": "Speed and memory",
        "options": {"kind": "speed", "repeats": 5},
        "results": [{"model": 0, "cases": [case], "memory": memory}],
    }


def generation(paired: bool) -> dict[str, Any]:
    def added(text: str, shared: int | None, shared_text: str = "", same: bool | None = None) -> dict[str, Any]:
        return {"text": text, "tokens": 5, "shared": shared, "shared_text": shared_text, "same": same}

    # A model may write anything: markup, escapes of a terminal, letters that turn the writing round.
    hostile = "the <script>alert(1)</script> \x1b[31m[bold]x[/bold] \u202e | `y`\nnext"
    same = added("and so on.", 5, "and so on.", True) if paired else added("and so on.", None)
    parted = added(hostile, 1, "the ", False) if paired else added(hostile, None)
    base = {"model": 1, "continuations": [added("the river", None), added("and so on.", None)]}
    return {
        "kind": "generation",
        "title": "Samples of generation",
        "options": {"kind": "generation", "length": 256, "tokens": 5},
        "prompts": [
            {"document": "texts/<i>one</i>.txt", "tokens": 256, "ending": "It is <b>beside\x1b[2J"},
            {"document": "texts/two.txt", "tokens": 100, "ending": "It goes on"},
        ],
        "results": [{"model": 0, "continuations": [parted, same]}, *([base] if paired else [])],
    }


HISTORIES = [
    [
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
]


def write_files(data: dict[str, Any], folder: Path, **options: Any) -> Path:
    """Write a report's files; returns the page."""
    for name, content in draw_report(data, **options).items():
        replace_file(folder / name, content)
    return folder / "report.html"
