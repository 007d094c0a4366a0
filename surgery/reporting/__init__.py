"""Tables, pictures and pages, drawn from plain data: nothing here measures, loads or knows a model."""

from surgery.reporting.report import draw_report, for_one_model, render_markdown, replace_file
from surgery.reporting.terminal import terminal_summary

__all__ = ["draw_report", "for_one_model", "render_markdown", "replace_file", "terminal_summary"]
