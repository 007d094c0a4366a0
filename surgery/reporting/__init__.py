"""Tables, pictures and pages, drawn from plain data: nothing here measures, loads or knows a model."""

from surgery.reporting.report import ReportFiles, replace_file, write_report
from surgery.reporting.terminal import terminal_table

__all__ = ["ReportFiles", "replace_file", "terminal_table", "write_report"]
