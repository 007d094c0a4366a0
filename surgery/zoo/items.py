"""The items of a manifest: globs are expanded, and every output gets its name."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from surgery.checkpoint import CONFIG_NAME, quote, safe_relative, sha256_json
from surgery.conversion.calibration import calibrated_operation
from surgery.errors import CheckpointError, UsageError
from surgery.zoo.fingerprints import work_fingerprint
from surgery.zoo.manifest import (
    LayersLevel,
    Level,
    Limits,
    Manifest,
    Model,
    calibrate_of,
    given,
    operations_of,
    plain_level,
)

_MOST_ITEMS = 100_000


@dataclass(frozen=True)
class ItemCalibration:
    """How the start values of an item are chosen.

    Attributes:
        operation: that is calibrated.
        text: files, folders and globs, from the root of the file system.
        texts: SHA-256 of the names and contents of these texts.
        settings: of the operation's calibration, as given.
        device, dtype: as in the manifest.
    """

    operation: str
    text: tuple[str, ...]
    texts: str
    settings: Mapping[str, Any]
    device: str
    dtype: str


@dataclass(frozen=True)
class Item:
    """One model of a zoo, with the operations and the output.

    Attributes:
        name: of the output's folder; unique within the zoo.
        source: folder or hub id.
        is_hub: whether ``source`` is a hub id.
        revision: of a hub model.
        operations: options of each operation as plain data.
        output: the folder to write.
        verify, placement, limits, allow_unverified: as in the manifest.
        calibration: of one of the operations; None if the start values are not chosen on texts.
        fault: why it cannot be run at all (its name is not valid on every file system); None if it can.
    """

    name: str
    source: str
    is_hub: bool
    revision: str | None
    operations: tuple[Mapping[str, Any], ...]
    output: Path
    verify: Level
    placement: Literal["auto", "copy", "link"]
    limits: Limits
    allow_unverified: bool = False
    calibration: ItemCalibration | None = None
    fault: str | None = None

    @property
    def work_fingerprint(self) -> str:
        """Of everything beside the source that the output depends on. Places and the device are not in it."""
        chosen = None
        if self.calibration is not None:
            chosen = {name: getattr(self.calibration, name) for name in ("operation", "texts", "settings", "dtype")}
        return work_fingerprint(self.operations, plain_level(self.verify), chosen)

    @property
    def layers(self) -> int | None:
        """Number of layers that the verification runs; None for all."""
        return self.verify.layers if isinstance(self.verify, LayersLevel) else None


def expand(manifest: Manifest, base: Path) -> list[Item]:
    """All items in the order of the manifest; the folders that match a glob are sorted by name.

    Args:
        manifest: a valid manifest.
        base: the folder that its relative paths start from.

    Raises:
        UsageError: a glob matches no folder, two items would have the same output, the output lies in a model, or the
            texts of a calibration cannot be read. The message lists all such faults.
    """
    output = (base / Path(manifest.output).expanduser()).resolve()
    texts = _Texts(base)
    faults: list[str] = []
    items: list[Item] = []
    for number, model in enumerate(manifest.models):
        sources, left_out = _sources(model, base, output)
        if not sources:
            faults.append(f"models.{number}.path: {model.path!r} matches no folder{_instead(left_out, output)}")
        faults += [f"models.{number}.exclude: {name!r} matches none of its folders" for name in left_out.useless]
        if len(sources) > 1 and model.name is not None:
            matched = f"{model.path!r} matches {len(sources)} folders"
            faults.append(f"models.{number}.name: {matched}; they cannot share one name")
        try:
            calibration = _calibration(manifest, model, texts)
        except UsageError as error:
            calibration, fault = None, f"calibrate.text: {error.message}"
            faults += [fault] if fault not in faults else []
        items += [_item(manifest, model, source, output, calibration) for source in sources]
    if len(items) > _MOST_ITEMS:
        faults.append(f"there are {len(items):,} items, at most {_MOST_ITEMS:,} are allowed; split the manifest")
    seen: dict[str, Item] = {}
    for item in items:
        # Some file systems do not distinguish upper and lower case.
        other = seen.setdefault(item.name.casefold(), item)
        if other is not item:
            faults.append(f"{other.source} and {item.source} would both be written to {item.name}")
    faults += _around(items, output)
    if faults:
        raise UsageError(
            "\n".join(["the manifest cannot be run:", *(f"  {fault}" for fault in faults[:20])]),
            hint="Relative paths start at the folder of the manifest. To give outputs different names, set `name`, or "
            "use {org} and {revision} in `layout`.",
        )
    return items


@dataclass
class _LeftOut:
    """Folders of a glob that are not used, by reason, and the names in ``exclude`` that have no effect."""

    in_output: int = 0
    excluded: int = 0
    useless: tuple[str, ...] = ()


def _sources(model: Model, base: Path, output: Path) -> tuple[list[str], _LeftOut]:
    left_out = _LeftOut()
    if model.hub is not None:
        return [model.hub], left_out
    pattern = str(base / Path(str(model.path)).expanduser())
    if not glob.has_magic(str(model.path)):
        # A missing folder is one row of the table, like a broken one.
        return [str(Path(pattern))], left_out
    found = [Path(path) for path in sorted(glob.glob(pattern, recursive=True)) if Path(path).is_dir()]
    excluded, left_out.useless = _excluded(model, base, found)
    sources = []
    for path in found:
        if path.resolve().is_relative_to(output):
            left_out.in_output += 1
        elif path in excluded:
            left_out.excluded += 1
        else:
            sources.append(str(path))
    return sources, left_out


def _excluded(model: Model, base: Path, found: list[Path]) -> tuple[set[Path], tuple[str, ...]]:
    """The excluded folders, and the names that exclude none: such a name is an error, while such a glob is allowed."""
    excluded: set[Path] = set()
    useless = []
    for exclude in model.exclude:
        if "/" in exclude:  # a path, like that of the entry
            matches = set(map(os.path.normpath, glob.glob(str(base / Path(exclude).expanduser()), recursive=True)))
            these = {path for path in found if os.path.normpath(path) in matches}
        else:
            these = {path for path in found if fnmatchcase(path.name, exclude)}
        if not these and not glob.has_magic(exclude):
            useless.append(exclude)
        excluded |= these
    return excluded, tuple(useless)


def _instead(left_out: _LeftOut, output: Path) -> str:
    """Why the folders that match a glob are not used."""
    parts = []
    if left_out.in_output:
        parts.append(f"{left_out.in_output} lie in the output {output} and are never used as models")
    if left_out.excluded:
        parts.append(f"{left_out.excluded} are excluded")
    return " that can be used: " + "; ".join(parts) if parts else ""


def _around(items: list[Item], output: Path) -> list[str]:
    """The models in which the output would lie: its files would become part of the model."""
    folders = {output, *(Path(item.source).resolve() for item in items if not item.is_hub)}
    return [
        f"output: {output} {'is' if folder == output else 'lies inside'} the model {folder}"
        for folder in sorted(folders)
        if output.is_relative_to(folder) and (folder / CONFIG_NAME).is_file()
    ]


class _Texts:
    """The texts of calibrations, each read once."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._known: dict[tuple[str, ...], str] = {}

    def __call__(self, patterns: Sequence[str]) -> tuple[tuple[str, ...], str]:
        """The patterns from the root of the file system, and the hash of the texts that match them.

        Raises:
            UsageError: as :func:`read_documents`.
        """
        # Imported here: only a manifest with a calibration needs them, and they need numpy.
        from surgery.data import read_documents
        from surgery.evaluation.held_out_passages import short_names

        found = tuple(str(self._base / Path(pattern).expanduser()) for pattern in patterns)
        if found not in self._known:
            documents = short_names(read_documents(found))
            self._known[found] = sha256_json([[document.name, document.text] for document in documents])
        return found, self._known[found]


def _calibration(manifest: Manifest, model: Model, texts: _Texts) -> ItemCalibration | None:
    given = calibrate_of(manifest, model)
    if given is None:
        return None
    operation = calibrated_operation([{"name": options.name} for options in operations_of(manifest, model)])
    assert operation is not None  # a valid manifest has no other calibration
    text, fingerprint = texts(given.text)
    return ItemCalibration(operation["name"], text, fingerprint, given.settings, given.device, given.dtype)


def _item(manifest: Manifest, model: Model, source: str, output: Path, calibration: ItemCalibration | None) -> Item:
    operations = operations_of(manifest, model)
    org, _, last = source.rpartition("/") if model.hub is not None else ("", "", Path(source).resolve().name)
    name = model.name or last or "model"
    fields = {
        "name": name,
        "org": org,
        "operations": "-".join(options.name for options in operations),
        "revision": (model.revision or "").replace("/", "-"),
    }
    folder = manifest.layout.format(**fields)
    fault = None
    try:
        safe_relative(folder)
        if "/" in folder:
            raise CheckpointError(f"the name {quote(folder)} contains a slash")
    except CheckpointError as error:
        fault, folder = error.message, ascii(folder).strip("'\"").replace("/", "-")
    return Item(
        name=folder,
        source=source,
        is_hub=model.hub is not None,
        revision=model.revision,
        operations=tuple(given(options) for options in operations),
        output=output / folder,
        verify=model.verify or manifest.verify,
        placement=model.placement or manifest.placement,
        limits=model.limits or manifest.limits,
        allow_unverified=manifest.allow_unverified if model.allow_unverified is None else model.allow_unverified,
        calibration=calibration,
        fault=fault,
    )
