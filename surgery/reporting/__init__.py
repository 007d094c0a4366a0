"""Tables, pictures and pages, drawn from plain data: nothing here measures, loads or knows a model."""

from surgery.reporting.report import ReportFiles, write_report
from surgery.reporting.terminal import terminal_table

__all__ = ["ReportFiles", "terminal_table", "write_report"]
