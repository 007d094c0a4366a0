"""Held-out documents: the part of the text that measures the training and is never trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from surgery.data.documents import Document, text_hash
from surgery.errors import UsageError


def hold_out(documents: Sequence[Document], share: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Split into training and held-out documents, with no text in both.

    Documents with the same text (white space does not count) stay together. The order in which they are held out
    depends on the seed and the text alone, so new files leave most of the split unchanged.

    Args:
        documents: whole documents.
        share: held-out share of all characters. At least one document is held out, and at least one is kept. A
            document is held out whole if it brings the sum nearer to the share, so few long documents can miss it.
        seed: of the order.

    Raises:
        UsageError: fewer than two different documents.
    """
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(text_hash(document), []).append(document)
    if len(groups) < 2:
        raise UsageError(
            f"data.held_out {share:g} needs at least two different documents, the text has {len(groups)}",
            hint="Give more files, a data.separator between documents, other files as data.held_out, or "
            "data.held_out: 0.",
        )
    order = sorted(groups, key=lambda key: _order(key, seed))
    wanted = share * sum(len(document.text) for document in documents)
    sizes = {key: sum(len(document.text) for document in group) for key, group in groups.items()}
    held: set[str] = set()
    size = 0
    for key in order:
        nearer = abs(size + sizes[key] - wanted) < abs(size - wanted)
        if nearer and len(held) < len(order) - 1:
            held.add(key)
            size += sizes[key]
    held = held or {min(order, key=sizes.__getitem__)}
    train = [document for document in documents if text_hash(document) not in held]
    return train, [document for document in documents if text_hash(document) in held]


def exclude_documents(documents: Sequence[Document], held_out: Sequence[Document]) -> list[Document]:
    """The documents whose text is not in `held_out`."""
    held = {text_hash(document) for document in held_out}
    return [document for document in documents if text_hash(document) not in held]


def is_held_out(document: Document, share: float, seed: int) -> bool:
    """Whether a streamed document is held out: its text and the seed decide, so equal texts are treated alike."""
    return int.from_bytes(_order(text_hash(document), seed)[:8], "big") < share * 2**64


def _order(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()
