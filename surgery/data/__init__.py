"""Texts to measure and to train on: reading files, cutting them into sequences, packing documents."""

from surgery.data.documents import Document, read_documents
from surgery.data.row_order import draw_rows
from surgery.data.rows import (
    IGNORED,
    LongDocuments,
    Row,
    collate,
    hold_out,
    make_rows,
    split_documents,
    without,
)
from surgery.data.sources import AnySource, Reader, Source, TextSource

__all__ = [
    "IGNORED",
    "AnySource",
    "Document",
    "LongDocuments",
    "Reader",
    "Row",
    "Source",
    "TextSource",
    "collate",
    "draw_rows",
    "hold_out",
    "make_rows",
    "read_documents",
    "split_documents",
    "without",
]
