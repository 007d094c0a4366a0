"""The programs that `bench.multiscreen` compares compute the same, and a finished cell is not measured again."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import multiscreen, multiscreen_flex, multiscreen_models
from surgery.loading.caches import cache_of, with_cache
from surgery.models.multiscreen import modeling


def test_dense_code_gives_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.randint(100, (1, 300), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = multiscreen.build("half infinite", 4, 100)
    with torch.no_grad():
        own = model(tokens, use_cache=False).logits
        monkeypatch.setattr(modeling, "accepted_sum", multiscreen_models.dense_sum)
        assert (model(tokens, use_cache=False).logits - own).abs().max() < 1e-5
    assert [layer.tiles.heads().window.isinf().sum() for layer in model.model.layers] == [2] * 4


@torch.no_grad()
def test_windows_in_blocks_give_the_same_logits() -> None:
    """As transformers' own windows, whole and with a cache of the last keys."""
    torch.manual_seed(0)
    model = multiscreen.build("windowed llama", 2, 100)
    tokens = torch.randint(100, (1, 700))
    whole = model(tokens).logits
    first = model(tokens[:, :300], use_cache=True)
    parts = [first.logits]
    for start, end in ((300, 301), (301, 650), (650, 651), (651, 700)):
        parts.append(model(tokens[:, start:end], **with_cache(cache_of(first))).logits)
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-5
    model.set_attn_implementation("eager")
    assert (model(tokens).logits - whole).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["multiscreen", "llama", "windowed llama"])
def test_a_cell(name: str) -> None:
    for measure in multiscreen.MEASURES:
        found = multiscreen.cell(name, measure, 96, 2, 100)
        assert found["seconds"] > 0 and found["MiB"] >= 0


def test_finished_cells_are_reported_with_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(
        psi=2, vocabulary=100, cells=tmp_path, models=multiscreen.MODELS, package=None, longest_dense=64, finished=True
    )
    for name, seconds in (("multiscreen", 3.0), ("half infinite", 6.0), ("llama", 2.0)):
        place = multiscreen.place_of(options, f"{name}/next/128")
        place.write_text(json.dumps({"parameters": 1, "seconds": seconds, "MiB": 4 * seconds}))

    def no_work(*_: Any, **__: Any) -> None:
        raise AssertionError("a cell was measured")

    monkeypatch.setattr(multiscreen.subprocess, "run", no_work)
    rows = multiscreen.compared(options, "next", 128)
    assert {row["model"]: row["time, of llama's"] for row in rows} == {
        "multiscreen": 1.5,
        "half infinite": 3.0,
        "llama": 1.0,
    }
    assert multiscreen.compared(options, "next", 256) == []


@pytest.mark.slow
def test_the_softmax_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention, here not compiled, gives the sums of the blocks, which other tests compare with an oracle."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    rows = multiscreen_flex.compared(200)
    assert [row["sum"] for row in rows] == ["blocks", "flex"] and all(row["difference"] < 1e-5 for row in rows)
