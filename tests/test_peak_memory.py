"""The high-water mark of a block, on a CPU."""

from __future__ import annotations

import sys

import pytest
import torch

from surgery.peak_memory import PeakMemory

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peak of a process")
def test_the_peak_is_of_the_block_alone_and_counts_what_was_freed() -> None:
    torch.ones(400 * MIB, dtype=torch.uint8)  # a greater peak, earlier
    with PeakMemory(torch.device("cpu")) as memory:
        torch.ones(100 * MIB, dtype=torch.uint8)
        torch.ones(200 * MIB, dtype=torch.uint8)
    if memory.above is None:
        pytest.skip("this system does not let a process set its high-water mark back")
    assert 195 * MIB < memory.above < 260 * MIB
    assert memory.mebibytes == memory.above / MIB


def test_elsewhere_the_peak_is_not_known() -> None:
    with PeakMemory(torch.device("meta")) as memory:
        torch.ones(MIB)
    assert memory.above is None and memory.mebibytes is None
