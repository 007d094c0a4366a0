"""How much a training step holds at once. Imports no torch, so that plans can count with it."""

from __future__ import annotations

# Logits held at once, in elements: 256 MiB in float32. Larger matrices are computed in pieces (`training.logits`).
TRAINED_AT_ONCE = 2**26
