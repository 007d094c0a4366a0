"""Engines: where the items of a zoo run. Each engine is one file here.

To add an engine: a file with a class that has the methods of `base.Engine`, its name in `EngineName`, its summary in
`SUMMARIES`, and a line in `open_engine`. Engines are imported when one is opened, so that the help
stays fast.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgery.zoo.engines.base import Engine
    from surgery.zoo.manifest import Parallel


class EngineName(StrEnum):
    """The engines by name."""

    local = "local"
    ray = "ray"


# For the help of the command line.
SUMMARIES = {EngineName.local: "processes on this machine", EngineName.ray: "a Ray cluster"}


def open_engine(name: EngineName, parallel: Parallel, output: Path, *, address: str | None = None) -> Engine:
    """Open an engine.

    Args:
        name: of the engine.
        parallel: how many items may run at once.
        output: the folder of all outputs.
        address: of a running cluster; None starts one on this machine (ray only).

    Raises:
        UsageError: the engine is not installed or cannot be reached.
    """
    if name is EngineName.ray:
        from surgery.zoo.engines.ray import RayEngine

        return RayEngine(parallel, address=address)
    from surgery.zoo.engines.local import LocalEngine

    return LocalEngine(parallel, output)
