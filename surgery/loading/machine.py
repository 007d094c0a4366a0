"""Versions, devices, memory and disks of this machine, and the sizes of models that fit. Plain data."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgery.anatomy.families import VERIFIED_WITH
from surgery.checkpoint import place_file
from surgery.checkpoint.disk import free_bytes
from surgery.errors import CheckpointError
from surgery.loading.precision import HALF, computes
from surgery.version import __version__
from surgery.words import counted

DISTRIBUTION = "model-surgery"
# Optional packages, and their purpose.
OPTIONAL = {
    "ray": "a zoo on a cluster",
    "lm-eval": "evaluation by lm-eval",
    "flash-attn": "the attention backend flash_attention_2",
    "bitsandbytes": "quantized sources",
    "torchao": "quantized sources",
    "compressed-tensors": "quantized sources",
}
# Factor on the size of the weights, for activations and the rest.
_HEADROOM = 1.3
_FP32, _BF16 = 4, 2


@dataclass(frozen=True)
class Package:
    """One package: the installed version, the required range, and whether the version is in the range."""

    name: str
    version: str | None
    wanted: str
    fits: bool
    purpose: str = ""


@dataclass(frozen=True)
class Device:
    """One device that can run a model, with its memory and the memory that is now ``free``, in bytes."""

    name: str
    description: str
    memory: int
    free: int


@dataclass(frozen=True)
class FolderStatus:
    """A folder for outputs: free bytes, whether it is writable, and how unchanged shards can be placed there."""

    purpose: str
    path: str
    free: int | None
    writable: bool
    sharing: tuple[str, ...]


@dataclass(frozen=True)
class Machine:
    """Everything that `surgery doctor` reports.

    Attributes:
        surgery, python, system: versions.
        verified_with: versions of transformers with which the families were verified.
        packages: required packages.
        optional: optional packages.
        devices: ``--device auto`` takes the first.
        attention: attention backends that work here.
        places: the working folder, the hub cache and the temporary folder.
        settings: relevant environment variables; the value of a secret is not shown.
        can_run: for each device, the approximate number of parameters that fit in float32 (for verify) and in bfloat16.
        problems: faults that prevent the use.
        notes: other facts for users.
    """

    surgery: str
    python: str
    system: str
    verified_with: tuple[str, ...]
    packages: tuple[Package, ...]
    optional: tuple[Package, ...]
    devices: tuple[Device, ...]
    attention: tuple[str, ...]
    places: tuple[FolderStatus, ...]
    settings: dict[str, str]
    can_run: dict[str, dict[str, int]]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def examine(folder: Path | None = None) -> Machine:
    """Examine this machine. Imports torch for the devices, and leaves no file.

    Args:
        folder: for outputs; by default the working folder.
    """
    packages = tuple(_required())
    optional = tuple(Package(name, _version(name), "", True, purpose) for name, purpose in OPTIONAL.items())
    devices = tuple(_devices())
    places = tuple(_places(folder or Path.cwd()))
    problems = [
        f"{package.name} {package.version or 'is missing'}: {package.wanted} is required"
        for package in packages
        if not package.fits
    ]
    problems += [f"{place.path} is not writable ({place.purpose})" for place in places if not place.writable]
    notes = []
    transformers = next((package.version for package in packages if package.name == "transformers"), None)
    if transformers is not None and transformers not in VERIFIED_WITH:
        notes.append(f"the families were verified with transformers {', '.join(VERIFIED_WITH)}, not {transformers}")
    has_flash = any(package.name == "flash-attn" and package.version for package in optional)
    return Machine(
        surgery=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores",
        verified_with=VERIFIED_WITH,
        packages=packages,
        optional=optional,
        devices=devices,
        attention=("sdpa", "eager", "flex_attention", *(("flash_attention_2",) if has_flash else ())),
        places=places,
        settings=_settings(),
        can_run={
            device.name: {
                "float32": int(device.free / _HEADROOM / _FP32),
                "bfloat16": int(device.free / _HEADROOM / _BF16),
            }
            for device in devices
        },
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _required() -> Iterator[Package]:
    """The packages that this distribution requires; empty if it is not installed."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found = _version(requirement.name)
            fits = found is not None and requirement.specifier.contains(found, prereleases=True)
            yield Package(requirement.name, found, str(requirement.specifier), fits)


def _devices() -> Iterator[Device]:
    import psutil
    import torch

    memory = psutil.virtual_memory()
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        described = f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
        yield Device(f"cuda:{index}", described, total, free)
    if torch.backends.mps.is_available():
        yield Device("mps", "Apple GPU, memory shared with the CPU", memory.total, memory.available)
    threads = counted(torch.get_num_threads(), "thread")
    slow = [dtype for dtype in HALF if computes(dtype) is False]
    lacks = f", slow in {' and '.join(slow)}: such models run in float32" if slow else ""
    yield Device("cpu", threads + lacks, memory.total, memory.available)


def _places(folder: Path) -> Iterator[FolderStatus]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for purpose, path in (
        ("outputs", folder),
        ("hub cache", Path(HF_HUB_CACHE)),
        ("temporary files", Path(tempfile.gettempdir())),
    ):
        free = None
        with suppress(CheckpointError):
            free = free_bytes(path)
        existing = path.absolute()
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        sharing = _sharing(existing)
        yield FolderStatus(purpose, str(path), free, sharing is not None, sharing or ())


def _sharing(folder: Path) -> tuple[str, ...] | None:
    """The ways to place a copy of a file here (reflink or copied, linked); None if the folder is not writable."""
    try:
        with tempfile.TemporaryDirectory(prefix=".surgery-doctor-", dir=folder) as scratch:
            source = Path(scratch) / "source"
            source.write_bytes(bytes(4096))
            found = [place_file(source, Path(scratch) / "copy", "auto")]
            with suppress(CheckpointError):
                found.append(place_file(source, Path(scratch) / "link", "link"))
            return tuple(found)
    except (OSError, CheckpointError):
        return None


def _settings() -> dict[str, str]:
    shown = ("HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    found = {name: os.environ[name] for name in shown if name in os.environ}
    return found | ({"HF_TOKEN": "set"} if os.environ.get("HF_TOKEN") else {})
