"""Markdown that is written from data."""

from __future__ import annotations

import re


def escape_markdown(value: object) -> str:
    """Text from a file as inert Markdown in one table cell: no links, no HTML, no line breaks."""
    text = re.sub(r"\s+", " ", str(value))
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", text)
