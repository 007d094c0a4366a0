"""Versions of the software that runs a model, for records."""

from __future__ import annotations

import platform

from surgery.version import __version__


def environment() -> dict[str, str]:
    """Versions of ``surgery``, ``transformers``, ``torch`` and ``python``."""
    import torch
    import transformers

    return {
        "surgery": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
