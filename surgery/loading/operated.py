"""A source model in memory with operations on it, without a converted checkpoint on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surgery.anatomy import Anatomy
from surgery.checkpoint import CONFIG_NAME, load_config, write_json
from surgery.loading import RunOptions, load_model
from surgery.operations import OPERATIONS


def open_model(folder: Path, anatomy: Anatomy, operations: Sequence[Mapping[str, Any]], run: RunOptions) -> Any:
    """Load a model and put operations on it; no parameter needs a gradient.

    Args:
        folder: the source.
        anatomy: of the source.
        operations: resolved options, in order. Operations in config.json only change the loaded config.
        run: device, dtype and attention backend.
    """
    from surgery.runtime import operate

    changes: dict[str, Any] = {}
    for options in operations:
        operation = OPERATIONS[str(options["name"])]
        changes |= operation.config_changes(operation.options.model_validate(dict(options)), anatomy)
    with tempfile.TemporaryDirectory(prefix="surgery-operated-") as scratch:
        model = load_model(_changed(folder, Path(scratch), changes) if changes else folder, run)
    travelling = [dict(options) for options in operations if not OPERATIONS[str(options["name"])].in_config_alone]
    operate(model, {**anatomy.family.for_runtime, "operations": travelling})
    return model.requires_grad_(False)


def _changed(folder: Path, scratch: Path, changes: Mapping[str, Any]) -> Path:
    """A folder of links to the files of ``folder``, with a changed config.json."""
    for path in folder.iterdir():
        if path.name != CONFIG_NAME:
            (scratch / path.name).symlink_to(path.resolve())
    config = {**load_config(folder / CONFIG_NAME), **changes}
    write_json(scratch / CONFIG_NAME, {name: value for name, value in config.items() if value is not None})
    return scratch
