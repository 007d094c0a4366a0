"""How fast this machine runs a model, for estimates of time before anything runs. Needs numpy alone, not torch.

A pass costs the products of its tokens and one reading of the weights, by two rates that are measured in a fraction of
a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from surgery.checkpoint import Checkpoint
from surgery.loading.precision import settled, slowness

if TYPE_CHECKING:
    from surgery.loading.run_options import RunOptions

# Time of a pass over the time of its products and its reading: norms, softmax, rotations, Python.
OVERHEAD = 1.15
FLOAT32_BYTES = 4
# A run of fewer seconds needs no word about its time.
SHORT = 8.0


@dataclass(frozen=True)
class Pace:
    """Rates of the processor: ``products`` in floating-point operations, ``reading`` in bytes, each per second."""

    products: float
    reading: float


@dataclass(frozen=True)
class ModelSize:
    """What decides the time of a pass.

    Attributes:
        parameters: numbers that every token is multiplied by. Of a mixture of experts, those of all experts.
        width: heads times head_dim, summed over the layers.
        stored: bytes on disk.
        slowness: time of a product over its time in float32, where a run takes another dtype.
    """

    parameters: int
    width: int
    stored: int
    slowness: float = 1.0

    def seconds(self, pace: Pace, tokens: int, length: int, passes: int = 1) -> float:
        """Time of ``passes`` forward passes of ``tokens`` each, in rows of ``length``."""
        # Two operations for a product and its sum; a query sees half of the keys on average, for scores and values.
        operations = tokens * (2 * self.parameters + 2 * length * self.width)
        once = self.slowness * operations / pace.products + self.parameters * FLOAT32_BYTES / pace.reading
        return OVERHEAD * passes * once


@lru_cache(maxsize=1)
def measure_pace() -> Pace:
    """Measure this machine as busy as it is now, once a process."""
    import numpy

    square = numpy.ones((1024, 1024), dtype=numpy.float32)
    rows = numpy.ones((256, 1024), dtype=numpy.float32)
    large = numpy.ones((4096, 4096), dtype=numpy.float32)
    vector = numpy.ones(4096, dtype=numpy.float32)
    return Pace(
        products=2 * rows.size * 1024 / _seconds(lambda: rows @ square),
        reading=large.nbytes / _seconds(lambda: large @ vector),
    )


def _seconds(work: Callable[[], object], span: float = 0.2) -> float:
    """Seconds of one turn: the mean over a span, in which others' work on the machine counts as it does in a run."""
    work()  # starts threads
    began, turns = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < span:
        work()
        turns += 1
    return passed / turns


def model_size(checkpoint: Checkpoint, run: RunOptions | None = None) -> ModelSize:
    """The size of a model, from its headers and config.json.

    Args:
        checkpoint: the model.
        run: how it is run; by default in float32 on the processor.
    """
    text = checkpoint.config.get("text_config")
    config = text if isinstance(text, dict) else checkpoint.config
    vocabulary = config.get("vocab_size")
    matrices = [tensor for tensor in checkpoint.tensors.values() if len(tensor.shape) == 2]
    embeddings = [matrix.parameters for matrix in matrices if matrix.shape[0] == vocabulary]
    # Of two matrices as long as the vocabulary, one is looked up; the other is the head. A single one serves as both.
    looked_up = min(embeddings) if len(embeddings) > 1 else 0
    width = _number(config, "num_hidden_layers", "n_layer") * _number(config, "hidden_size", "n_embd")
    slow = 1.0 if run is None else slowness(settled(run, [checkpoint.folder]), checkpoint.folder)
    return ModelSize(checkpoint.total_parameters - looked_up, width, checkpoint.total_bytes, slow)


def _number(config: dict[str, object], *names: str) -> int:
    """The first of some keys that holds a number; 0 if none does, which leaves attention out of the estimate."""
    return next((value for name in names if isinstance(value := config.get(name), int)), 0)


def duration(seconds: float) -> str:
    """An estimate in words, as round as it is uncertain: "a few seconds", "about 40 s", "about 2 h 10 min"."""
    if seconds < SHORT:
        return "a few seconds"
    if seconds < 90:
        return f"about {5 * max(1, round(seconds / 5))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min"
    hours, minutes = divmod(10 * round(minutes / 10), 60)
    return f"about {hours} h" + (f" {minutes} min" if minutes else "")
