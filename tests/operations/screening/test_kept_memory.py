"""The keys that a windowed cache keeps do not hold on to the memory of a prefill."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Layers as a prefill runs them: tensors of all tokens are made and freed around the keys that stay.
PREFILL = """
import torch
from surgery.operations.screening.modeling.key_store import KeyStore

def taken():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))

def layer():
    store = KeyStore([0, 1, 2], 900, 4)
    before = torch.empty(3 * tokens * 64)
    keys, values = (torch.empty(1, 3, tokens, 64) for _ in range(2))
    del before
    columns = torch.arange(tokens)[None]
    store.add((keys, values, columns, columns < 4), False, True)
    after = torch.empty(3 * tokens * 64)
    return store

tokens = 2**14
layer()
start = taken()
stores = [layer() for _ in range(300)]
print(taken() - start, sum(store.nbytes() for store in stores))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads a process's memory from /proc")
def test_the_memory_of_a_prefill_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", PREFILL], check=True, capture_output=True, text=True)
    grown, kept = map(int, done.stdout.split())
    assert kept == 300 * 2 * 3 * 903 * 64 * 4
    tensor = 3 * 2**14 * 64 * 4  # of all tokens
    assert grown < kept + 60 * tensor  # it grew by 100 to 400 where what stays lay between them
