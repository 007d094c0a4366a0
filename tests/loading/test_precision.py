"""In which dtype a model runs: by the instructions of the processor, the memory, and what was asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import surgery
from surgery.loading import RunOptions, load_model, precision
from surgery.loading.precision import computes, settled, slowness, usable_memory
from tests.families import tiny_model
from tests.tokenizers import save_tiny_tokenizer

SLOW = "flags : fpu sse2 avx2\n"
FAST = "flags\t: fpu avx512_bf16 avx512_fp16\n"


def saved(folder: Path, dtype: torch.dtype) -> Path:
    """A tiny model in a dtype, with a tokenizer."""
    tiny_model("llama").to(dtype).save_pretrained(folder)
    save_tiny_tokenizer(folder)
    return folder


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Set what the processor says of itself."""
    for cached in (computes, precision._tell_once):
        cached.cache_clear()

    def says(flags: str) -> None:
        (tmp_path / "cpuinfo").write_text(flags)
        monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "cpuinfo")
        computes.cache_clear()

    monkeypatch.setattr(precision, "computes", computes)
    monkeypatch.setattr(precision, "runs_on_processor", lambda device: device in ("auto", "cpu"))
    yield says
    for cached in (computes, precision._tell_once):
        cached.cache_clear()


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A model that is stored in bfloat16."""
    return saved(tmp_path / "half", torch.bfloat16)


def test_a_processor_without_the_instructions_takes_float32_and_says_so(
    processor: Any, half: Path, caplog: pytest.LogCaptureFixture
) -> None:
    processor(SLOW)
    with caplog.at_level(logging.WARNING, logger="surgery"):
        first, again = load_model(half), load_model(half)
    assert first.dtype == again.dtype == torch.float32
    (said,) = caplog.messages
    assert said.startswith("runs in float32, not in the bfloat16 of the checkpoint: this processor has no instructions")


def test_a_processor_with_the_instructions_takes_the_dtype_of_the_checkpoint(
    processor: Any, half: Path, caplog: pytest.LogCaptureFixture
) -> None:
    processor(FAST)
    assert load_model(half).dtype == torch.bfloat16 and not caplog.messages


def test_what_was_asked_for_is_kept_and_its_cost_is_said(
    processor: Any, half: Path, caplog: pytest.LogCaptureFixture
) -> None:
    processor(SLOW)
    asked = RunOptions(dtype="bfloat16")
    assert settled(asked, [half]) == asked
    assert caplog.messages[0].startswith("runs in bfloat16, as asked, and will be slow")


def test_too_little_memory_keeps_the_dtype_and_says_that_it_is_slow(
    processor: Any, half: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(SLOW)
    monkeypatch.setattr(precision, "usable_memory", lambda: 1000)
    assert settled(RunOptions(), [half]) == RunOptions()
    assert "will be slow" in caplog.messages[0] and "1.0 kB of memory" in caplog.messages[0]


def test_a_gpu_and_float32_weights_change_nothing(processor: Any, half: Path, tmp_path: Path) -> None:
    processor(SLOW)
    assert settled(RunOptions(device="cuda"), [half]) == RunOptions(device="cuda")
    assert settled(RunOptions(), [saved(tmp_path / "whole", torch.float32)]) == RunOptions()


def test_models_of_one_comparison_run_in_one_dtype(processor: Any, half: Path, tmp_path: Path) -> None:
    processor(SLOW)
    whole = saved(tmp_path / "whole", torch.float32)
    assert settled(RunOptions(), [whole, half]).dtype == "float32"


def test_the_weights_count_where_the_config_names_no_dtype(processor: Any, half: Path) -> None:
    processor(SLOW)
    path = half / "config.json"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if '"dtype"' not in line))
    assert settled(RunOptions(), [half]).dtype == "float32"


def test_estimates_follow_the_dtype(processor: Any, half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(SLOW)
    monkeypatch.setattr(precision, "measured_slowness", lambda dtype: 30.0)
    assert slowness(RunOptions(dtype="float32"), half) == 1.0
    assert slowness(settled(RunOptions(), [half]), half) == 1.0
    assert slowness(RunOptions(dtype="bfloat16"), half) == 30.0
    processor(FAST)
    assert slowness(RunOptions(), half) == 1.0


def test_the_memory_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("123456\n")
    monkeypatch.setattr(precision, "_LIMITS", (tmp_path / "missing", limit))
    assert usable_memory() == 123456
    limit.write_text("max\n")
    assert usable_memory() > 1e8


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not say")
def test_torch_says_the_same_of_this_processor() -> None:
    own = {name for name, has in torch.cpu.get_capabilities().items() if has is True}
    for dtype, names in precision._INSTRUCTIONS.items():
        computes.cache_clear()
        assert computes(dtype) == bool(own & names), dtype


def test_loading_shows_no_bar_of_transformers(half: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.enable_progress_bar()
    load_model(half)
    assert "Loading" not in capfd.readouterr().err
    assert transformers_logging.is_progress_bar_enabled(), "other programs keep theirs"


def test_a_recipe_takes_float32_too(processor: Any, half: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one two three four five six seven. " * 400)
    recipe = {
        "model": str(surgery.convert(half, output=tmp_path / "converted").output),
        "output": str(tmp_path / "out"),
        "data": {"text": [str(tmp_path / "text.txt")], "sequence_length": 32, "held_out": 0},
        "budget": {"steps": 1},
    }
    processor(SLOW)
    assert surgery.finetune(recipe, dry_run=True).plan.precision == "float32"
    processor(FAST)
    assert surgery.finetune(recipe, dry_run=True).plan.precision == "bfloat16"
