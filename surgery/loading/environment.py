"""Versions of what a model runs with, for every record that this tool writes."""

from __future__ import annotations

import platform

from surgery.version import __version__


def environment() -> dict[str, str]:
    """``surgery``, ``transformers``, ``torch`` and ``python``."""
    import torch
    import transformers

    return {
        "surgery": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
