"""The pace of a trial: the median of three passes over a text, and of three questions about it."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest

from surgery.checkpoint import open_checkpoint, resolve
from surgery.loading import load_model
from surgery.loading.pace import Pace, model_size
from surgery.trial import timing


@pytest.mark.parametrize("continues", [True, False])
def test_one_slow_pass_counts_for_nothing(source: Path, monkeypatch: pytest.MonkeyPatch, continues: bool) -> None:
    pace = Pace(products=1e9, reading=1e9)
    passes = [[2.0, 90.0, 3.0], [0.5, 0.25, 60.0]][: 2 if continues else 1]
    clock = accumulate(step for own in passes for one in own for step in (0.0, one))
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(timing, "measure_pace", lambda: pace)
    monkeypatch.setattr(timing, "chunk_size", lambda model, chunk, length: chunk if continues else length)
    size = model_size(open_checkpoint(resolve(source)))
    model = load_model(source)
    lengths: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, arguments, keywords: lengths.append(keywords["input_ids"].shape[1]), with_kwargs=True
    )
    found = timing.time_model(model, size, 256)
    assert found.text == pytest.approx(3.0 / size.seconds(pace, 256, 256))
    assert found.question == pytest.approx((0.5 if continues else 3.0) / size.seconds(pace, 12, 12))
    assert lengths.count(12) == (4 if continues else 0) and lengths.count(256) == (5 if continues else 4)
    assert next(clock, None) is None
