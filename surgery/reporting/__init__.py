"""Tables, pictures and pages from plain data; nothing here loads or measures a model."""

from surgery.reporting.report import draw_report, for_one_model, render_markdown, replace_file
from surgery.reporting.terminal import terminal_summary

__all__ = ["draw_report", "for_one_model", "render_markdown", "replace_file", "terminal_summary"]
