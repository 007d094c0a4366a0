"""What windows save at a length: the share of the key-value cache that stays, blocks that are skipped, keys outside.

Thresholds save none of these: each key is read before its relevance is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from surgery.anatomy import Anatomy

# The lengths, in tokens, at which plans, cards and reports say what is saved.
LENGTHS = (4096, 16384, 65536)
BLOCK = 128


class CalibratedWindows(Protocol):
    """A layer of a calibration."""

    @property
    def layer(self) -> int:
        """Its number."""

    @property
    def log2_window(self) -> Sequence[float]:
        """The window of each chosen query head, base 2."""


@dataclass(frozen=True)
class Saving:
    """What is saved at one length.

    Attributes:
        tokens: the length.
        cache: share of the bytes of the model's key-value cache that stays, against the source.
        blocks: share of the causal blocks of 128 queries and 128 keys that no query head of a key-value head reaches;
            the mean over the key-value heads of the screened layers.
        keys: share of the pairs of query and key that lie outside the windows, of the same heads.
    """

    tokens: int
    cache: float
    blocks: float
    keys: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def savings(
    layers: Sequence[CalibratedWindows],
    anatomy: Anatomy,
    settings: Mapping[str, Any],
    lengths: Sequence[int] = (),
) -> tuple[dict[str, Any], ...]:
    """What a calibration saves at each length, as plain data.

    Args:
        layers: of the calibration.
        anatomy: of the model.
        settings: as the calibration records them.
        lengths: in tokens; by default `LENGTHS` and the context of the settings.
    """
    windows = group_windows(layers, anatomy, settings["heads"], settings["full_window"])
    wanted = lengths or sorted({*LENGTHS, settings.get("context") or LENGTHS[0]})
    return tuple(saving(windows, anatomy, tokens, settings["sinks"]).to_dict() for tokens in wanted)


def saving(windows: Mapping[int, Sequence[float]], anatomy: Anatomy, tokens: int, sinks: int) -> Saving:
    """What windows save at a length.

    Args:
        windows: of each key-value head, by screened layer; infinite where a query head has none.
        anatomy: of the model.
        tokens: the length.
        sinks: number of first keys that are always kept.
    """
    kept = source = 0
    for layer in anatomy.layers:
        if layer.kind not in ("full", "sliding", "chunked"):
            continue
        whole = tokens if layer.window is None else min(tokens, layer.window)
        own = windows.get(layer.index, (math.inf,) * layer.kv_heads)
        source += whole * layer.head_dim * layer.kv_heads
        kept += sum(min(whole, kept_keys(window, tokens, sinks)) for window in own) * layer.head_dim
    every = [window for layer in windows.values() for window in layer]
    blocks = sum(blocks_outside(window, tokens, sinks) for window in every) / len(every)
    return Saving(
        tokens, kept / source, blocks, sum(keys_outside(window, tokens, sinks) for window in every) / len(every)
    )


def kept_keys(window: float, tokens: int, sinks: int) -> int:
    """Number of keys that a windowed cache gives a query after ``tokens`` tokens: its window and the first keys."""
    return int(min(tokens, window + sinks))


def blocks_outside(window: float, tokens: int, sinks: int) -> float:
    """Share of the causal blocks of 128 queries and 128 keys without a key in the window and without a sink."""
    if math.isinf(window):
        return 0.0
    count = math.ceil(tokens / BLOCK)
    with_sinks = math.ceil(sinks / BLOCK)
    # The nearest pair of a block is its first query and its last key.
    outside = sum(max(0, ((row - 1) * BLOCK + 1 - int(window)) // BLOCK + 1 - with_sinks) for row in range(count))
    return outside / (count * (count + 1) / 2)


def keys_outside(window: float, tokens: int, sinks: int) -> float:
    """Share of the causal pairs of query and key that lie outside the window and are no sinks."""
    beyond = max(0.0, tokens - window - sinks)
    return 0.0 if math.isinf(window) else beyond * (beyond + 1) / (tokens * (tokens + 1))


def group_windows(
    layers: Iterable[CalibratedWindows], anatomy: Anatomy, heads: Sequence[int] | None, full_window: int
) -> dict[int, tuple[float, ...]]:
    """The widest window of each key-value head by layer; infinite if a query head has none.

    Args:
        layers: of a calibration.
        anatomy: of the model.
        heads: the chosen query heads; None for all.
        full_window: the window that rejects no key.
    """
    found = {}
    for layer in layers:
        each = anatomy.heads // anatomy.layers[layer.layer].kv_heads
        chosen = range(anatomy.heads) if heads is None else heads
        widths = dict(zip(chosen, (round(2**value) for value in layer.log2_window), strict=True))
        windows = [float(widths.get(head, full_window)) for head in range(anatomy.heads)]
        windows = [math.inf if window >= full_window else window for window in windows]
        found[layer.layer] = tuple(max(windows[first : first + each]) for first in range(0, anatomy.heads, each))
    return found
