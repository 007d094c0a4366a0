"""The price of windows in a training: exact shares, and which windows it pulls at."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from surgery.errors import SurgeryError
from surgery.operations.screening.modeling import Screening
from surgery.operations.screening.window_price import SavedByWindows


def model(windows: tuple[int, ...], each: int | None = 2) -> Any:
    start = {"threshold": -3.0, "softness": 0.05, "log2_window": 20.0}
    attention: Any = torch.nn.Module()
    attention.screening = Screening({"form": "gated", "sinks": 4, "full_window": 1024, "start": start}, len(windows))
    if each is not None:
        attention.num_key_value_groups = each
    with torch.no_grad():
        attention.screening.log2_window.copy_(torch.tensor(windows).float().log2())
    made = torch.nn.Sequential()
    made.attention = attention
    return made


def priced(windows: tuple[int, ...], save: str, longest: int) -> tuple[float, list[float]]:
    made = model(windows)
    price = SavedByWindows(made, save, 256)
    price.longest = longest
    share = price.share(made.attention.screening)
    share.backward()
    return share.item(), made.attention.screening.log2_window.grad.tolist()


def test_memory_is_what_the_widest_windows_leave() -> None:
    """Two groups of three: of 256 tokens 64 + 4 stay in the first, all in the second."""
    share, pulls = priced((64, 16, 1024, 1024), "memory", longest=512)
    assert share == pytest.approx((1 - 68 / 256) / 2)
    # An octave about 64 keys costs 64 (2^0.25 - 2^-0.25) / 0.5 of 256, in one of two groups.
    assert pulls == [pytest.approx(-64 * (2**0.25 - 2**-0.25) / 0.5 / 256 / 2, rel=0.02), 0, 0, 0]


def test_equal_windows_are_pulled_alike_and_long_ones_not() -> None:
    assert priced((64, 64), "memory", longest=512)[1] == [pytest.approx(-64 * math.log(2) / 256 / 2, rel=0.05)] * 2
    assert priced((64, 64), "memory", longest=128)[1][0] < 0
    assert priced((64, 64), "memory", longest=127)[1] == [0, 0]


def test_time_is_saved_by_narrow_windows() -> None:
    narrow, pulls = priced((8, 8), "time", longest=512)
    assert priced((128, 128), "time", longest=512)[0] < narrow < 1 and pulls[0] <= 0
    assert priced((1024, 1024), "time", longest=512)[0] == 0


def test_the_longest_sequence_is_seen() -> None:
    made = model((64, 64))
    price = SavedByWindows(made, "memory", 256)
    made.forward = lambda **given: None
    made(input_ids=torch.zeros(1, 77))
    made(input_ids=torch.zeros(2, 5))
    assert price.longest == 77


def test_a_family_that_does_not_say_how_heads_share_keys_is_refused() -> None:
    made = model((64, 64), each=None)
    with pytest.raises(SurgeryError, match="how many query heads share"):
        SavedByWindows(made, "memory", 256).share(made.attention.screening)
