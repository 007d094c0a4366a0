"""Numbers with their nouns, for messages."""

from __future__ import annotations


def counted(value: int, noun: str) -> str:
    """``1 head``, ``1,024 heads``."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"
