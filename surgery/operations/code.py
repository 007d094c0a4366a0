"""The code that travels in a converted checkpoint: the core of ``surgery.runtime`` and the files of its operations.

In a checkpoint the files lie beside each other and import each other relatively, as transformers expects of custom
code: ``surgery.runtime.attention`` travels as ``surgery_attention.py``, ``surgery.operations.X.modeling.Y`` as
``surgery_X_Y.py``. Nothing but the import lines is changed. ``modeling_surgery.py``, which config.json names, is
``surgery.runtime.entry`` with the imports of the checkpoint's operations.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable

from surgery.checkpoint.record import ENTRY_NAME
from surgery.errors import CheckpointError
from surgery.operations import OPERATIONS

FILE_PREFIX = "surgery_"
_CORE = ("visible_keys", "operation", "attention", "models")
_MARKER = "# The operations of this checkpoint follow.\n"
_IMPORTED_MODULE = re.compile(r"^( *from )surgery\.(?:runtime|operations)\.([\w.]+)(?= import )", re.MULTILINE)
_IMPORT = re.compile(r"^from surgery\.[\w.]+ import (?:\([^)]*\)|.*)\n", re.MULTILINE)


def travelling_code(names: Iterable[str]) -> dict[str, bytes]:
    """The files of code that a checkpoint with these operations carries: name -> content.

    Args:
        names: of the operations, as in config.json.

    Raises:
        CheckpointError: an operation is unknown.
    """
    names = set(names)
    if unknown := sorted(names - OPERATIONS.keys()):
        raise CheckpointError(
            f"the operation {unknown[0]!r} is unknown to this version", hint="Install a newer model-surgery."
        )
    code = {f"{FILE_PREFIX}{stem}.py": _source("surgery.runtime", stem) for stem in _CORE}
    lines = []
    for operation in OPERATIONS.values():
        if operation.name not in names:
            continue
        if operation.code_package is None:
            lines.append(f'IN_CONFIG_ALONE.add("{operation.name}")\n')
            continue
        lines += _IMPORT.findall(_source(operation.code_package, "__init__"))
        for stem in _stems(operation.code_package):
            code[f"{FILE_PREFIX}{operation.name}_{stem}.py"] = _source(operation.code_package, stem)
    entry = _source("surgery.runtime", "entry")
    assert _MARKER in entry
    code[ENTRY_NAME] = entry.replace(_MARKER, "".join(lines))
    return {name: _IMPORTED_MODULE.sub(_relative, text).encode() for name, text in code.items()}


def code_hashes(code: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each file."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in code.items()}


def is_code_name(name: str) -> bool:
    """Whether a file in a checkpoint's folder has a name of travelling code."""
    return name == ENTRY_NAME or (name.startswith(FILE_PREFIX) and name.endswith(".py"))


def _relative(found: re.Match[str]) -> str:
    parts = [part for part in found[2].split(".") if part != "modeling"]
    return f"{found[1]}.{FILE_PREFIX}{'_'.join(parts)}"


def _stems(package: str) -> list[str]:
    names = sorted(entry.name for entry in _folder(package).iterdir() if entry.name.endswith(".py"))
    return [name.removesuffix(".py") for name in names if name != "__init__.py"]


def _source(package: str, stem: str) -> str:
    return _folder(package).joinpath(f"{stem}.py").read_text(encoding="utf-8")


def _folder(package: str) -> Traversable:
    """The folder of a package, which is not imported: that would take torch."""
    root, *folders = package.split(".")
    return files(root).joinpath(*folders)
