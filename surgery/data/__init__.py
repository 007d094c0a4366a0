"""Text for measurements and training: read from files or the hub, split into documents, packed into rows.

To add a data source: a model of its options and its reading in `sources`.
"""

from surgery.data.documents import Document, read_documents, split_documents
from surgery.data.held_out import exclude_documents, hold_out
from surgery.data.row_order import draw_rows
from surgery.data.rows import IGNORED, LongDocuments, Row, collate, make_rows
from surgery.data.sources import AnySource, DataSource, RecallSource, SourceReader, TextSource

__all__ = [
    "IGNORED",
    "AnySource",
    "DataSource",
    "Document",
    "LongDocuments",
    "RecallSource",
    "Row",
    "SourceReader",
    "TextSource",
    "collate",
    "draw_rows",
    "exclude_documents",
    "hold_out",
    "make_rows",
    "read_documents",
    "split_documents",
]
