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
    at = {entry["layer"]: _factors(settings, entry["values"], length) for entry in record["layers"]}
    heads = sum(len(values) for values in at.values())
    changed = sum(any(abs(value - 1) > _SAME for value in own) for values in at.values() for own in values)
    facts = {
        "answers": f"{recall['right']:.0%} right before, {recall['calibrated_right']:.0%} after; log-probability "
        f"{recall['log_probability']:.2f} before, {recall['calibrated']:.2f} after{_interval(recall)}, over "
        f"{recall['questions']} questions about {recall['haystacks']} held-out texts",
        "loss": _loss(guard),
        "changed": f"{changed} of {heads} heads",
    }
    columns = {f"multiplier of each head at n = {length:,}": 1, "gain of each head": 2}
    if settings["form"] == "none":
        del columns[f"multiplier of each head at n = {length:,}"]
    if settings.get("outputs") != "gain":
        del columns["gain of each head"]
    rows = tuple(
        (str(layer), *(_words([own[place] for own in values]) for place in columns.values()))
        for layer, values in at.items()
    )
    held_out = [
        (text["text"], str(text["tokens"]), f"{text['loss']:.4f}", f"{text['calibrated'] - text['loss']:+z.4f}")
        for text in guard
    ]
    return CalibrationSummary(
        facts,
        ("layer", *columns),
        rows,
        ("text", "tokens", "loss", "change"),
        tuple(held_out),
        f"{changed} of {heads} heads have another temperature or gain; the others compute what they did before",
    )


def _factors(
    settings: Mapping[str, Any], values: Mapping[str, Sequence[float]], length: int
) -> list[tuple[float, float, float]]:
    """m(1), m(length) and the gain of each head; m is linear in ln n, so a head with 1 at both is 1 everywhere."""
    heads = len(next(iter(values.values())))
    scale = values.get("scale", [0.0] * heads)
    if settings["form"] == "anchored":
        offset = [1 - own * math.log(settings["reference_length"]) for own in scale]
    else:
        offset = list(values.get("bias", [1.0] * heads))
    gains = values.get("gain", [1.0] * heads)
    return [
        (start, start + own * math.log(length), gain) for start, own, gain in zip(offset, scale, gains, strict=True)
    ]


def _interval(recall: Mapping[str, Any]) -> str:
    """The interval of the change; records from before there was one do not have it."""
    if recall.get("low") is None:
        return ""
    change = recall["calibrated"] - recall["log_probability"]
    return f" ({change:+.2f}, 95% interval {recall['low']:+.2f} to {recall['high']:+.2f})"


def _loss(guard: Sequence[Mapping[str, Any]]) -> str:
    changes = [text["calibrated"] - text["loss"] for text in guard]
    lengths = " and ".join(f"{tokens:,}" for tokens in sorted({text["tokens"] for text in guard}))
    return (
        f"{sum(changes) / len(changes):+.4f} on average, {max(changes):+.4f} at most, in {len(guard)} passages of "
        f"{lengths} tokens"
    )


def _words(values: Sequence[float]) -> str:
    return " ".join("1" if abs(value - 1) <= _SAME else f"{value:.2f}" for value in values)
