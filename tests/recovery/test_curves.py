"""The picture of a run: a control's curve, and where a stage begins."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from surgery.reporting.training_log import draw_training_log


def _rows(count: int, offset: float = 0.0) -> list[dict[str, Any]]:
    rates = {"scale": 0.1}
    return [
        {"step": step, "loss": 3 / step + offset, "learning_rates": rates, **({"stage": 2} if step > 4 else {})}
        for step in range(1, count + 1)
    ]


def test_controls_and_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []
    lines: list[float] = []
    plot, axvline = Axes.plot, Axes.axvline

    def noted(self: Axes, *args: Any, **options: Any) -> Any:
        labels.append(options.get("label", ""))
        return plot(self, *args, **options)

    def noted_line(self: Axes, x: float = 0, *args: Any, **options: Any) -> Any:
        lines.append(x)
        return axvline(self, x, *args, **options)

    monkeypatch.setattr(Axes, "plot", noted)
    monkeypatch.setattr(Axes, "axvline", noted_line)
    rows = [{"step": 0, "tokens": 0, "teacher": "a second copy"}, *_rows(8)]
    draw_training_log(rows, tmp_path / "a.png", {"untouched": _rows(8, 1.0)})
    assert "untouched, training" in labels and set(lines) == {4.5}
    draw_training_log(rows, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_a_single_step_without_a_rate_warns_of_nothing(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 3.0, "learning_rates": {"scale": 0.0}}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_training_log(rows, tmp_path / "a.png")


def test_the_share_of_rejected_keys_is_drawn_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []
    monkeypatch.setattr(Axes, "set_ylabel", lambda self, text, **_: labels.append(text))
    rows = [{**row, "rejected": 0.1 * row["step"]} for row in _rows(5)]
    draw_training_log([*rows, {"step": 5, "held_out_loss": 1.0, "held_out_rejected": 0.5}], tmp_path / "a.png")
    assert labels.count("keys rejected (%)") == 1
    draw_training_log(_rows(5), tmp_path / "b.png")
    assert labels.count("keys rejected (%)") == 1
