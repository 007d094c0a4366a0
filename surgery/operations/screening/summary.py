"""What a calibration chose, what it saves and what it costs, in words, from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgery.operations.base import CalibrationSummary
from surgery.operations.layer_numbers import summarize_numbers

_SAVES = {
    "keys": "keys: most rejected keys",
    "memory": "memory: the smallest cache at {context:,} tokens",
    "time": "time: the least time of attention at {context:,} tokens",
}


def summarize(record: Mapping[str, Any]) -> CalibrationSummary:
    """The summary of a record, as plain data; of an older version's record, as far as it says it."""
    settings, guard = record["settings"], record["guard"]
    facts = {}
    save = settings.get("save")
    if save in _SAVES:
        facts["chosen for"] = _SAVES[save].format(context=settings["context"] or 0)
    facts |= {f"at {entry['tokens']:,} tokens": _saved(entry) for entry in record.get("saved", ())}
    if guard:
        facts["keys rejected"] = _rejected(guard)
        facts["loss"] = _loss(record, guard)
    rows = tuple(_row(layer, settings["full_window"]) for layer in record["layers"])
    held_out = [
        (text["text"], str(text["tokens"]), f"{text['loss']:.4f}", f"{_change(text):+z.4f}", f"{text['rejected']:.1%}")
        for text in guard
    ]
    return CalibrationSummary(
        facts,
        ("layer", "windows", "thresholds"),
        rows,
        ("text", "tokens", "loss", "change", "keys rejected"),
        tuple(held_out),
        _remark(record["layers"]),
    )


def _change(text: Mapping[str, Any]) -> float:
    return float(text["screened"] - text["loss"])


def _remark(layers: Sequence[Mapping[str, Any]]) -> str:
    heads = sum(len(layer["open"]) for layer in layers)
    opened = sum(sum(layer["open"]) for layer in layers)
    if not opened:
        return f"all {heads} heads reject keys"
    whole = [layer["layer"] for layer in layers if all(layer["open"])]
    where = f" (all heads of layers {summarize_numbers(whole)})" if whole else ""
    return f"{opened} of {heads} heads stay open: rejecting keys there would increase the loss too much{where}"


def _saved(entry: Mapping[str, Any]) -> str:
    return (
        f"{entry['cache']:.0%} of the cache stays, {entry['blocks']:.0%} of the 128 x 128 blocks are skipped, "
        f"{entry['keys']:.0%} of the keys lie outside the windows"
    )


def _rejected(guard: Sequence[Mapping[str, Any]]) -> str:
    lengths = sorted({text["tokens"] for text in guard})
    means = [_mean([text["rejected"] for text in guard if text["tokens"] == tokens]) for tokens in lengths]
    return ", ".join(f"{mean:.0%} at {tokens:,} tokens" for tokens, mean in zip(lengths, means, strict=True))


def _loss(record: Mapping[str, Any], guard: Sequence[Mapping[str, Any]]) -> str:
    changes = [_change(text) for text in guard]
    lengths = " and ".join(f"{tokens:,}" for tokens in sorted({text["tokens"] for text in guard}))
    estimated = record.get("estimated")
    passages = f"{len(guard)} passages of {lengths} tokens"
    said = f"{_mean(changes):+.4f} on average, {max(changes):+.4f} at most, in {passages}"
    return said if estimated is None else f"{said}; estimated {estimated:+.4f}"


def _row(layer: Mapping[str, Any], full_window: int) -> tuple[str, str, str]:
    widths = [round(2**value) for value in layer["log2_window"]]
    windows = ["all keys" if width >= full_window else f"{width}" for width in widths]
    thresholds = [
        "none" if value < -1 - softness else f"{value:.2f}"
        for value, softness in zip(layer["threshold"], layer["softness"], strict=True)
    ]
    return str(layer["layer"]), _runs(windows), _runs(thresholds)


def _runs(values: Sequence[str]) -> str:
    """``64 64 64 none`` as ``3 x 64, none``."""
    runs: list[list[Any]] = []
    for value in values:
        if runs and runs[-1][1] == value:
            runs[-1][0] += 1
        else:
            runs.append([1, value])
    return ", ".join(value if count == 1 else f"{count} x {value}" for count, value in runs)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
