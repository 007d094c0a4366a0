"""Durations and sizes in the spelling of manifests: ``90s``, ``1h30m``, ``4 GB``, ``512 MiB``."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_UNITS = {
    "": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate(("", "k", "m", "g", "t"))},
    **{f"{letter}ib": 1024**power for power, letter in enumerate(("k", "m", "g", "t"), start=1)},
}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([a-z]*)", re.IGNORECASE)
_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:\d{1,6}(?:\.\d{1,3})?\s*[dhms]\s*)+")
_MOST_BYTES = 10**18
_MOST_SECONDS = 366 * 86_400


def parse_size(given: Any) -> Any:
    """``4 GB`` in bytes; a number is already in bytes.

    Raises:
        ValueError: the text is not a size.
    """
    if not isinstance(given, str):
        return given
    match = _SIZE.fullmatch(given.strip())
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError("must be a size such as 500 MB, 4 GB or 2 GiB")
    return round(float(match[1]) * _UNITS[match[2].lower()])


def parse_duration(given: Any) -> Any:
    """``1h30m`` in seconds; a number is already in seconds.

    Raises:
        ValueError: the text is not a duration.
    """
    if isinstance(given, int) and not isinstance(given, bool):
        return float(given)
    if not isinstance(given, str):
        return given
    text = given.strip().lower()
    if not _DURATION.fullmatch(text):
        raise ValueError("must be a time such as 90s, 15m or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(r"([\d.]+)\s*([dhms])", text))


# `format` names the notation in the JSON Schema, for the reference.
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0, le=_MOST_BYTES, json_schema_extra={"format": "size"})]
Duration = Annotated[
    float, BeforeValidator(parse_duration), Field(gt=0, le=_MOST_SECONDS, json_schema_extra={"format": "duration"})
]


def format_duration(seconds: float) -> str:
    """Seconds for people: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
