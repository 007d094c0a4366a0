"""The layout of the Hugging Face hub cache: ``models--org--name/{blobs,refs,snapshots/<commit>}``.

The files of a snapshot are links to ``../../blobs``. Only these links may leave a model folder, and only into the blobs
of the same repository.
"""

import re
from dataclasses import dataclass
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Snapshot:
    """A snapshot folder of the hub cache: its repository's folder, hub id and commit."""

    repository: Path
    hub_id: str
    commit: str

    @property
    def blobs(self) -> Path:
        """The only folder outside the snapshot that its links may point to."""
        return self.repository / "blobs"


def content_hash(path: Path) -> str | None:
    """The SHA-256 of a file according to the hub: the name of its blob in the cache; None for any other file."""
    blob = path.resolve()
    snapshot = snapshot_of(path.parent)
    is_blob = snapshot is not None and blob.parent == snapshot.blobs and _SHA256.fullmatch(blob.name)
    return blob.name if is_blob else None


def snapshot_of(folder: Path) -> Snapshot | None:
    """The snapshot that `folder` is; None for an ordinary folder."""
    folder = folder.resolve()
    repository = folder.parent.parent
    kind, _, rest = repository.name.partition("--")
    if folder.parent.name != "snapshots" or kind != "models" or not rest or not _COMMIT.fullmatch(folder.name):
        return None
    return Snapshot(repository, "/".join(rest.split("--")), folder.name)
