"""Texts to measure and to train on: reading files, cutting them into sequences, packing documents."""

from surgery.data.texts import Document, read_documents

__all__ = ["Document", "read_documents"]
