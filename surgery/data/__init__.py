"""Texts to measure and to train on: reading files, cutting them into sequences, packing documents."""

from surgery.data.packing import IGNORED, Row, collate, hold_out, make_rows, split_documents, without
from surgery.data.texts import Document, read_documents

__all__ = [
    "IGNORED",
    "Document",
    "Row",
    "collate",
    "hold_out",
    "make_rows",
    "read_documents",
    "split_documents",
    "without",
]
