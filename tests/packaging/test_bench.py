"""Every benchmark can be imported; tests do not check their measurements."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

import bench

FOLDER = Path(bench.__path__[0])
NAMES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts) for path in FOLDER.rglob("*.py") if path.stem != "__init__"
)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_can_be_imported(name: str) -> None:
    importlib.import_module(f"bench.{name}")


def test_the_benchmark_for_gpus_says_that_there_is_none(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    from bench.gpu_screening import main

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_screening"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err
