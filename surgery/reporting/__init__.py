"""Tables, pictures and pages, drawn from plain data: nothing here measures, loads or knows a model."""

from surgery.reporting.report import ReportFiles, for_one_model, render_markdown, replace_file, write_report
from surgery.reporting.terminal import terminal_summary

__all__ = ["ReportFiles", "for_one_model", "render_markdown", "replace_file", "terminal_summary", "write_report"]
