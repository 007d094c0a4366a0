"""The picture of a sweep, as files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgery.reporting.figures.sweep import loss_against_saved
from surgery.reporting.theme import DARK, LIGHT, drawn_in, to_png, to_svg


def draw_sweep(result: Mapping[str, Any]) -> dict[str, bytes]:
    """Loss by the share that is saved, as files by name: PNG, and SVG for light and dark pages.

    Args:
        result: from ``Sweep.to_dict()``.
    """
    with drawn_in(LIGHT):
        files = {
            "sweep.png": to_png(loss_against_saved(result, LIGHT), LIGHT),
            "sweep.svg": to_svg(loss_against_saved(result, LIGHT)),
        }
    with drawn_in(DARK):
        files["sweep-dark.svg"] = to_svg(loss_against_saved(result, DARK))
    return files
