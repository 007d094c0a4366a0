"""s is float32 through everything that happens to a bfloat16 model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.checkpoint import open_checkpoint
from tests.interop.conftest import Operated, load, logits, scales, tokens


@pytest.fixture
def model(operated: Operated) -> Any:
    return load(operated(dtype=torch.bfloat16))


def dtypes(model: Any) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """Of the scales, and of everything else."""
    found = scales(model)
    others = {parameter.dtype for name, parameter in model.named_parameters() if name not in found}
    return {parameter.dtype for parameter in found.values()}, others


@pytest.mark.parametrize("options", [{}, {"dtype": "auto"}, {"dtype": torch.bfloat16}, {"dtype": torch.float16}])
def test_loading(operated: Operated, options: dict[str, Any]) -> None:
    expected = options.get("dtype")
    other = expected if isinstance(expected, torch.dtype) else torch.bfloat16
    assert dtypes(load(operated(dtype=torch.bfloat16), **options)) == ({torch.float32}, {other})


CASTS = {
    "to(bfloat16)": (lambda model: model.to(torch.bfloat16), torch.bfloat16),
    "to(device, float16)": (lambda model: model.to("cpu", torch.float16), torch.float16),
    "bfloat16()": (lambda model: model.bfloat16(), torch.bfloat16),
    "half()": (lambda model: model.half(), torch.float16),
    "float().bfloat16()": (lambda model: model.float().bfloat16(), torch.bfloat16),
}


@pytest.mark.parametrize("cast", CASTS)
def test_casts_leave_the_scales_as_they_are(operated: Operated, cast: str) -> None:
    model = load(operated())
    with torch.no_grad():
        for parameter in scales(model).values():
            parameter.add_(1e-6)  # a value that bfloat16 does not hold
    before = {name: value.detach().clone() for name, value in scales(model).items()}
    identities = [id(value) for value in scales(model).values()]
    apply, expected = CASTS[cast]
    apply(model)
    assert dtypes(model) == ({torch.float32}, {expected})
    assert all(torch.equal(value, before[name]) for name, value in scales(model).items())
    assert [id(value) for value in scales(model).values()] == identities, "an optimizer would lose them"
    assert logits(model).isfinite().all()


def test_moves_are_followed(model: Any) -> None:
    model.to("meta")
    assert {parameter.device.type for parameter in scales(model).values()} == {"meta"}
    model.to_empty(device="cpu")
    assert {parameter.device.type for parameter in scales(model).values()} == {"cpu"}


def test_ten_steps_move_the_scales_and_saving_keeps_them(model: Any, tmp_path: Path) -> None:
    """The step is far below what bfloat16 resolves at the start value."""
    start = {name: value.detach().clone() for name, value in scales(model).items()}
    frozen = {name: value.detach().clone() for name, value in model.named_parameters() if name not in start}
    optimizer = torch.optim.AdamW(scales(model).values(), lr=1e-5, weight_decay=0.0)
    model.train()
    for _ in range(10):
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name: value.detach().clone() for name, value in scales(model).items()}
    for name, value in moved.items():
        assert value.dtype == torch.float32
        assert ((value - start[name]).abs() > 1e-6).all(), name
        assert torch.equal(value.bfloat16(), start[name].bfloat16()), "bfloat16 would have lost the movement"
    model.eval().save_pretrained(tmp_path / "saved")
    stored = open_checkpoint(tmp_path / "saved").tensors
    assert {info.dtype for name, info in stored.items() if name in moved} == {"F32"}
    again = load(tmp_path / "saved")
    assert all(torch.equal(value, moved[name]) for name, value in scales(again).items())
    unchanged = dict(again.named_parameters())
    assert all(torch.equal(value, unchanged[name]) for name, value in frozen.items())
    assert torch.equal(logits(again), logits(model))
