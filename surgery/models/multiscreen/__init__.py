"""Multiscreen: a language model of gated tiles that judge each key alone, against a learned threshold.

``configuration``, ``modeling`` and ``tiles`` travel with the checkpoint: they import only torch and transformers.
"""

from surgery.models.multiscreen.architecture import MultiscreenArchitecture
from surgery.models.multiscreen.options import MultiscreenOptions

__all__ = ["MultiscreenArchitecture", "MultiscreenOptions"]
