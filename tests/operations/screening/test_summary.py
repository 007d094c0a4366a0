"""The words for what a calibration chose, from plain records."""

from __future__ import annotations

from typing import Any

from surgery.operations.screening.summary import summarize

LAYER = {
    "layer": 3,
    "threshold": (-1.1, -1.1, 0.25),
    "softness": (0.05,) * 3,
    "log2_window": (6.0, 6.0, 13.01),
    "rejected": (0.5,) * 3,
    "open": (False,) * 3,
}
RECORD: dict[str, Any] = {
    "settings": {"full_window": 8192, "save": "memory", "context": 4096},
    "layers": (LAYER,),
    "guard": (
        {"text": "a", "tokens": 1024, "loss": 2.0, "screened": 2.001, "rejected": 0.2},
        {"text": "b", "tokens": 4096, "loss": 2.0, "screened": 2.003, "rejected": 0.6},
    ),
    "saved": ({"tokens": 4096, "cache": 0.49, "blocks": 0.3, "keys": 0.4},),
    "estimated": 0.0011,
}


def test_what_is_saved_and_what_it_costs() -> None:
    found = summarize(RECORD)
    assert found.facts == {
        "chosen for": "memory: the smallest cache at 4,096 tokens",
        "at 4,096 tokens": "49% of the cache stays, 30% of the 128 x 128 blocks are skipped, 40% of the keys lie "
        "outside the windows",
        "keys rejected": "20% at 1,024 tokens, 60% at 4,096 tokens",
        "loss": "+0.0020 on average, +0.0030 at most, in 2 passages of 1,024 and 4,096 tokens; estimated +0.0011",
    }
    assert found.rows == (("3", "2 x 64, all keys", "2 x none, 0.25"),)


def test_the_record_of_an_earlier_version_says_less() -> None:
    old = {**RECORD, "settings": {"full_window": 8192}}
    del old["saved"], old["estimated"]
    assert list(summarize(old).facts) == ["keys rejected", "loss"]
