"""Documents: one text each, read from files in a fixed order."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from surgery.data.recall import Haystack
from surgery.errors import NoTextError, UsageError


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        name: file name, as its pattern found it.
        text: decoded as UTF-8; of a conversation, its messages as JSON.
        source: number of the data source.
        messages: of a conversation; None for plain text.
        haystack: facts to hide in a part of ``text``, and questions about them; None for plain text.
    """

    name: str
    text: str
    source: int = 0
    messages: tuple[dict[str, str], ...] | None = None
    haystack: Haystack | None = None


def match_files(pattern: str | Path) -> list[Path]:
    """The files that match a path, a folder (every file below it) or a glob, sorted; empty if none match."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        return sorted(child for child in path.rglob("*") if child.is_file() and not child.name.startswith("."))
    if path.is_file():
        return [path]
    return sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())


def read_documents(patterns: Iterable[str | Path]) -> list[Document]:
    """Read every file that matches the paths, folders and globs (``texts/**/*.md``), each once, sorted by name.

    A folder stands for all files below it. A file that is not UTF-8 is an error: a skipped file would silently change
    the measurement.

    Raises:
        UsageError: a pattern matches nothing, or a file cannot be read or is not UTF-8.
        NoTextError: every file is empty.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = match_files(pattern)
        if not matches and Path(pattern).expanduser().is_dir():
            raise UsageError(f"the folder {str(pattern)!r} holds no file", hint="Give files, folders or globs of text.")
        if not matches:
            raise UsageError(f"no text file matches {str(pattern)!r}", hint='Quote globs: "texts/**/*.md".')
        found.update(dict.fromkeys(matches))
    if not found:
        raise UsageError("no text was given", hint='Give files, folders or globs: "texts/**/*.md".')
    documents = []
    for path in sorted(found):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not UTF-8 text (byte {error.start})", hint="Give text files only.") from error
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        if text.strip():
            documents.append(Document(name=path.as_posix(), text=text))
    if not documents:
        names = [str(path) for path in found]
        raise NoTextError(f"all {len(names)} text files are empty" if len(names) > 1 else f"{names[0]} is empty")
    return documents


def split_documents(documents: Sequence[Document], separator: str | None) -> list[Document]:
    """Split files into documents at a separator, which is removed; empty documents are dropped."""
    if separator is None:
        return list(documents)
    return [
        Document(f"{document.name}#{number}", piece, document.source)
        for document in documents
        for number, piece in enumerate(document.text.split(separator))
        if piece.strip()
    ]


def text_hash(document: Document) -> str:
    """SHA-256 of a document's text; white space does not count."""
    return hashlib.sha256(" ".join(document.text.split()).encode()).hexdigest()
