"""Prefill and decoding rates and memory of a model, and of its base in the same turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from surgery.evaluation.suite import SpeedPart
from surgery.evaluation.timing import interleaved, ratio

VERSION = 1


def measure_speed(
    part: SpeedPart, model: Any, base: Any | None, on_case: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One plain row for each case: tokens per second, and the ratio of times model over base within each turn.

    Args:
        part: which lengths, how often.
        model, base: loaded models; both in memory at once.
        on_case: told of each case as it begins.
    """
    from surgery.evaluation.speed import decoding_call, memory

    models = {"model": model, **({"base": base} if base is not None else {})}
    cases: list[tuple[str, int, Callable[[Any], Callable[[], Any]]]] = [
        (f"prefill {length}", length, partial(_prefill, length)) for length in part.prefill
    ]
    after, steps = part.decode_after, part.decode_tokens
    cases.append((f"decode {steps} after {after}", steps, lambda one: decoding_call(one, after, steps)))
    rows: list[dict[str, Any]] = []
    for name, tokens, make in cases:
        on_case(name)
        seconds = interleaved({key: make(one) for key, one in models.items()}, part.repeats)
        rates = {key: tokens / statistics.median(own) for key, own in seconds.items()}
        rows.append(
            {
                "case": name,
                "rate": rates["model"],
                "base_rate": rates.get("base"),
                "time_ratio": ratio(seconds, "model", "base") if base is not None else None,
            }
        )
    longest = max(part.prefill)
    on_case(f"memory {longest}")
    for key, one in models.items():
        rows.append({"case": f"memory {longest}", "who": key, **memory(one, longest)})
    return rows


def _prefill(length: int, model: Any) -> Callable[[], Any]:
    from surgery.evaluation.speed import prefill_call

    return prefill_call(model, length)
