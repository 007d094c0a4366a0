"""The dtype in which a model runs here: the one home of ``auto``.

A processor without instructions for bfloat16 or float16 is slower in them than in float32, up to fifty times. There
such a model runs in float32 where memory allows it, and one line says so. Plans ask here too, so nothing imports torch
unless it has to.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from surgery.checkpoint import CONFIG_NAME, TORCH_DTYPES, format_size, load_config, open_checkpoint
from surgery.errors import CheckpointError
from surgery.loading.run_options import RunOptions, pick_device

HALF = ("bfloat16", "float16")
# Names of the instructions in /proc/cpuinfo (with underscores, and on ARM) and in torch.cpu.get_capabilities().
_INSTRUCTIONS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp", "fp16_arith"},
}
_CPUINFO = Path("/proc/cpuinfo")
_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
# Factor on the size of the weights, for activations and the rest.
_HEADROOM = 1.3

_log = logging.getLogger("surgery")


@dataclass(frozen=True)
class DtypeChoice:
    """How a model is loaded: ``auto`` (as it is stored) or a dtype by name, and a sentence where it is not usual."""

    dtype: str
    note: str | None = None


def choose_dtype(stored: str | None, wanted: str, *, on_processor: Callable[[], bool], needed: int) -> DtypeChoice:
    """Choose the dtype of a run.

    Args:
        stored: dtype of the weights on the disk.
        wanted: ``auto``, or the name of a dtype, which is kept.
        on_processor: says whether the model runs on the processor, and not on a GPU.
        needed: bytes of memory of the run in float32.
    """
    dtype = stored if wanted == "auto" else wanted
    if dtype not in HALF or computes(dtype) is not False or not on_processor():
        return DtypeChoice(wanted)
    lacks = f"this processor has no instructions for {dtype} and is slower in it than in float32"
    if wanted != "auto":
        return DtypeChoice(wanted, f"runs in {dtype}, as asked, and will be slow: {lacks}")
    memory = usable_memory()
    if needed > memory:
        return DtypeChoice(
            wanted,
            f"runs in {dtype} and will be slow: {lacks}, and in float32 the model needs {format_size(needed)} of "
            f"the {format_size(memory)} of memory",
        )
    return DtypeChoice("float32", f"runs in float32, not in the {dtype} of the checkpoint: {lacks}")


def settled(run: RunOptions, folders: Iterable[Path]) -> RunOptions:
    """The options with the dtype in which models run here, the same for all; a sentence says what is not usual.

    Args:
        run: as it was asked for.
        folders: of the models.
    """
    if run.dtype == "float32":
        return run
    for folder in folders:
        stored = stored_dtype(folder)
        if (stored if run.dtype == "auto" else run.dtype) in HALF:
            weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
            needed = float32_bytes(weights // 2)
            on_processor = partial(runs_on_processor, run.device)
            choice = choose_dtype(stored, run.dtype, on_processor=on_processor, needed=needed)
            tell(choice)
            if choice.dtype != run.dtype:
                return run.model_copy(update={"dtype": choice.dtype})
    return run


def float32_bytes(parameters: int) -> int:
    """Memory of a model that runs in float32."""
    return int(_HEADROOM * 4 * parameters)


def tell(choice: DtypeChoice) -> None:
    """Say the sentence of a choice once a process, by the logger ``surgery``."""
    if choice.note is not None:
        _tell_once(choice.note)


@cache
def _tell_once(text: str) -> None:
    _log.warning(text)


def runs_on_processor(device: str) -> bool:
    """Whether a device by name is the processor.

    For ``auto`` torch is asked where it is loaded; a plan, which does not load it, looks for the driver of a GPU.
    """
    if device != "auto":
        return device == "cpu"
    if "torch" in sys.modules:
        return pick_device(device).type == "cpu"
    if importlib.metadata.version("torch").endswith("+cpu"):
        return True
    return sys.platform != "darwin" and not any(path.exists() for path in _DRIVERS)


def stored_dtype(folder: Path) -> str | None:
    """The dtype in which transformers loads a model by default: that of config.json, else that of the weights.

    None if the folder says neither.
    """
    try:
        config = load_config(folder / CONFIG_NAME)
    except CheckpointError:
        return None
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(part.get(key), str):
                return str(part[key]).removeprefix("torch.")
    with suppress(CheckpointError):
        for tensor in open_checkpoint(folder).tensors.values():
            if tensor.dtype in TORCH_DTYPES:
                return TORCH_DTYPES[tensor.dtype]
    return None


@cache
def computes(dtype: str) -> bool | None:
    """Whether this processor has instructions for bfloat16 or float16; None if that is not known.

    Linux lists them in a file. Elsewhere torch is asked, which knows them since 2.13.
    """
    try:
        names = set(re.split(r"[\s:]+", _CPUINFO.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        import torch

        ask: Any = getattr(torch.cpu, "get_capabilities", None)
        if ask is None:
            return None
        names = {name for name, has in ask().items() if has is True}
    return bool(names & _INSTRUCTIONS[dtype])


def usable_memory() -> int:
    """Bytes of memory of this machine, or of the container that this process runs in."""
    import psutil

    found = [int(psutil.virtual_memory().total)]
    for path in _LIMITS:
        try:
            found.append(int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no container, or "max"
            continue
    return min(found)


def slowness(run: RunOptions, folder: Path) -> float:
    """Time of a product over its time in float32, for estimates; 1 where it is no slower."""
    dtype = stored_dtype(folder) if run.dtype == "auto" else run.dtype
    if dtype not in HALF or computes(dtype) is not False or not runs_on_processor(run.device):
        return 1.0
    return max(1.0, measured_slowness(dtype))


@cache
def measured_slowness(dtype: str, times: int = 4) -> float:
    """Measure how much slower this processor multiplies in a dtype than in float32. Imports torch."""
    import torch

    def fastest(kind: torch.dtype) -> float:
        rows, square = torch.ones(64, 512, dtype=kind), torch.ones(512, 512, dtype=kind)
        found = []
        for _ in range(times):
            began = time.perf_counter()
            torch.nn.functional.linear(rows, square)
            found.append(time.perf_counter() - began)
        return min(found)

    return fastest(getattr(torch, dtype)) / fastest(torch.float32)
