"""The peak of a process's memory, or of a GPU's, within a block of code."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The greatest memory within a ``with`` block, above that at its begin.

    On a CPU it is the system's own high-water mark of resident memory: a thread that reads the memory from time to time
    misses peaks, and all of them where the work leaves it no time. Pages of files count, so touch all weights before.

    Attributes:
        above: in bytes, after the block; None where the system does not report it. On a CPU, only Linux does.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._linux = device.type == "cpu" and sys.platform == "linux"
        self._before: int | None = None
        self.above: int | None = None

    @property
    def mebibytes(self) -> float | None:
        """``above`` in MiB."""
        return None if self.above is None else self.above / 2**20

    def __enter__(self) -> Self:
        """Count from here."""
        gc.collect()
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before = torch.cuda.memory_allocated(self._cuda)
        elif self._linux:
            try:
                _CLEAR.write_text("5")  # sets the high-water mark back to what is resident
            except OSError:  # some sandboxes do not allow it
                return self
            self._before = _resident("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Read the peak."""
        if self._before is None:
            return
        peak = torch.cuda.max_memory_allocated(self._cuda) if self._cuda is not None else _resident("VmHWM")
        self.above = max(0, peak - self._before)


def _resident(name: str) -> int:
    """A line of the process's status, in bytes."""
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
