"""The sum over accepted keys of infinite heads: the blocks of Multiscreen beside FlexAttention by the softmax identity.

python -m bench.multiscreen_flex [--lengths 1024,4096,16384] [--out FILE.json]

With scores ln alpha, one more key of score 0 and one more value dimension that is 1 at this key alone, softmax gives
out = sum of alpha v / (1 + sum of alpha) and mark = 1 / (1 + sum of alpha), so that the sum is out / mark.

FlexAttention is compiled, and its block mask is made before the clock starts. One row, four heads, keys of 16 and
values of 64 numbers in float32, forward alone: on a CPU, FlexAttention has no backward pass. Seconds are those of the
processor with one thread, memory is the high-water mark of resident memory above that before the sum.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import normalize, pad

from bench.harness import report
from bench.multiscreen import seconds
from surgery.models.multiscreen.groups import Heads
from surgery.models.multiscreen.tiles import accepted_sum
from surgery.peak_memory import PeakMemory

HEADS, KEY, VALUE, MARK = 4, 16, 64, 16  # the mark takes one dimension; kernels want multiples of 16


def with_flex(length: int, tightness: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function of query, key and value that gives the sums; query and key have ``length`` tokens."""

    def score(value: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        root = torch.relu(1 - tightness[head] * (1 - value))
        return torch.where(key == 0, torch.zeros_like(value), 2 * torch.log(root))

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key <= query + 1

    compiled = torch.compile(flex_attention)
    mask = create_block_mask(seen, None, None, length, length + 1, device="cpu")

    def work(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (pad(states, (0, 0, 1, 0)) for states in (key, value))
        mark = torch.zeros(*value.shape[:3], MARK)
        mark[:, :, 0] = 1
        out: Any = compiled(query, key, torch.cat((value, mark), -1), score_mod=score, block_mask=mask, scale=1.0)
        return out[..., :VALUE] / out[..., VALUE : VALUE + 1]

    return work


@torch.no_grad()
def compared(length: int) -> list[dict[str, Any]]:
    """Seconds and memory of both, and the greatest difference of their sums."""
    torch.manual_seed(0)
    tensors = [normalize(torch.randn(1, HEADS, length, size), dim=-1) for size in (KEY, KEY, VALUE)]
    heads = Heads(torch.full((HEADS,), 2.0), torch.full((HEADS,), math.inf))
    works: dict[str, Callable[..., Tensor]] = {
        "blocks": lambda *t: accepted_sum(*t, None, heads),
        "flex": with_flex(length, heads.tightness),
    }
    rows, sums = [], []
    for name, work in works.items():
        sums.append(work(*tensors))  # compiles, too
        with PeakMemory(tensors[0].device) as memory:
            time = seconds(lambda work=work: work(*tensors))
        rows.append(
            {
                "tokens": length,
                "sum": name,
                "seconds": time,
                "MiB": None if memory.above is None else memory.above / 2**20,
            }
        )
    return [{**row, "difference": float((sums[0] - sums[1]).abs().max())} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="1024,4096,16384")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report(
        "multiscreen_flex", [row for length in options.lengths.split(",") for row in compared(int(length))], options.out
    )


if __name__ == "__main__":
    main()
