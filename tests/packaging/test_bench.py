"""Every benchmark can be imported; tests do not check their measurements."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

import bench
from tests.runtime.test_flex_attention import use_uncompiled

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


def test_the_last_word_of_an_example_stands_in_its_passage(tmp_path: Path) -> None:
    import json

    from bench.recall_words import LENGTH, write_task

    names = ["".join(chr(97 + number // 26**place % 26) for place in range(6)) for number in range(1, 400)]
    paragraphs = [f"At {name} it is so. " + "We go on to the sea. " * 15 + f"Now {name} is far." for name in names]
    (tmp_path / "text.txt").write_text("\n".join(paragraphs), encoding="utf-8")
    write_task(tmp_path / "task", [str(tmp_path / "text.txt")], 5)
    examples = [json.loads(line) for line in (tmp_path / "task" / "last_word.jsonl").read_text().splitlines()]
    assert len(examples) == 5
    for example in examples:
        assert LENGTH - 10 < len(example["text"]) <= LENGTH
        assert example["word"].isalpha() and example["word"] in example["text"].split()


def test_the_benchmark_for_gpus_is_right_on_a_cpu(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Every screened way equals the mask, and every way runs; FlexAttention without a compiler."""
    from bench import gpu_screening
    from surgery.operations.screening.modeling import blocks

    use_uncompiled(monkeypatch)
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", blocks.BLOCK_ELEMENTS)  # the command sets it
    monkeypatch.setattr(gpu_screening, "SETTINGS", ((1, 64),))
    given = "--device cpu --dtype float32 --lengths 256 --check-length 320 --repeats 1 --block-elements 4096"
    monkeypatch.setattr("sys.argv", ["gpu_screening", *given.split()])
    differences = gpu_screening.check(320, "cpu")
    assert len(differences) == 6 and max(differences.values()) < 1e-5
    gpu_screening.main()
    assert "token, windowed / all keys" in capsys.readouterr().out


def test_the_benchmark_for_gpus_stops_at_a_wrong_kernel(monkeypatch: Any) -> None:
    from bench import gpu_screening

    monkeypatch.setattr(gpu_screening, "check", lambda *_: {"flex, windows": float("nan")})
    monkeypatch.setattr("sys.argv", ["gpu_screening", "--device", "cpu"])
    with pytest.raises(SystemExit, match="differs from the mask"):
        gpu_screening.main()
