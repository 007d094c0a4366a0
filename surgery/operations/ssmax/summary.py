"""What a calibration of SSMax gained, what it costs, and the multipliers that it chose, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from surgery.operations.base import CalibrationSummary

# Multipliers within this of 1 are shown as 1, and their heads count as unchanged.
_SAME = 5e-4


def summarize(record: Mapping[str, Any]) -> CalibrationSummary:
    """The summary of a record, as plain data."""
    settings, recall, guard = record["settings"], record["recall"], record["guard"]
    length = max(settings["lengths"])
    at = {entry["layer"]: _multipliers(settings, entry["values"], length) for entry in record["layers"]}
    heads = sum(len(values) for values in at.values())
    changed = sum(any(abs(value - 1) > _SAME for value in pair) for values in at.values() for pair in values)
    facts = {
        "answers": f"{recall['right']:.0%} right before, {recall['calibrated_right']:.0%} after; log-probability "
        f"{recall['log_probability']:.2f} before, {recall['calibrated']:.2f} after, over {recall['questions']} "
        f"questions about {recall['haystacks']} held-out texts",
        "loss": _loss(guard),
        "changed": f"{changed} of {heads} heads",
    }
    rows = tuple((str(layer), _words([pair[1] for pair in values])) for layer, values in at.items())
    held_out = [
        (text["text"], str(text["tokens"]), f"{text['loss']:.4f}", f"{text['calibrated'] - text['loss']:+z.4f}")
        for text in guard
    ]
    return CalibrationSummary(
        facts,
        ("layer", f"multiplier of each head at n = {length:,}"),
        rows,
        ("text", "tokens", "loss", "change"),
        tuple(held_out),
        f"{changed} of {heads} heads have another temperature; the others compute what they did before",
    )


def _multipliers(
    settings: Mapping[str, Any], values: Mapping[str, Sequence[float]], length: int
) -> list[tuple[float, float]]:
    """m(1) and m(length) of each head; m is linear in ln n, so a head with 1 at both is 1 everywhere."""
    form = settings["form"]
    heads = len(next(iter(values.values())))
    scale = values.get("scale", [0.0] * heads)
    if form == "anchored":
        offset = [1 - own * math.log(settings["reference_length"]) for own in scale]
    else:
        offset = list(values["bias"])
    return [(start, start + own * math.log(length)) for start, own in zip(offset, scale, strict=True)]


def _loss(guard: Sequence[Mapping[str, Any]]) -> str:
    changes = [text["calibrated"] - text["loss"] for text in guard]
    lengths = " and ".join(f"{tokens:,}" for tokens in sorted({text["tokens"] for text in guard}))
    return (
        f"{sum(changes) / len(changes):+.4f} on average, {max(changes):+.4f} at most, in {len(guard)} passages of "
        f"{lengths} tokens"
    )


def _words(values: Sequence[float]) -> str:
    return " ".join("1" if abs(value - 1) <= _SAME else f"{value:.2f}" for value in values)
