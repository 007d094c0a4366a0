"""Help texts: plain text in sections, 80 columns at most. Without rich, `--help` takes half the time."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# Typer puts a default that is told in words into parentheses as well.
_DEFAULT_IN_WORDS = re.compile(r"\[default: \((.*)\)((?:; [^\]]*)?)\]$")
# What Typer writes of a number with bounds: `<int range>`, and `x>=16` at the end.
_RANGE, _AT_LEAST = re.compile(r"<(int|float) range>"), re.compile(r"\bx>=(\S+)\]$")


def write_sections(parameters: list[Any], ctx: Any, formatter: Any) -> None:
    """Arguments and options in sections by their panel, in the order of the parameters."""
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in parameters:
        is_argument = parameter.param_type_name == "argument"
        if is_argument:
            write_in_capitals(parameter)
        if parameter.metavar is None and getattr(parameter, "multiple", False):
            parameter.metavar = "<str> ..."
        record = help_record(parameter, ctx)
        if record is not None:
            panel = getattr(parameter, "rich_help_panel", None) or ("Arguments" if is_argument else "Options")
            name, text = record
            if is_argument:
                name = parameter.metavar + ("..." if parameter.nargs != 1 else "")
            sections.setdefault(panel, []).append((name, _DEFAULT_IN_WORDS.sub(r"[default: \1\2]", text)))
    for panel, records in sections.items():
        if not records:
            continue
        with formatter.section(panel):
            formatter.write_dl(records)


def help_record(parameter: Any, ctx: Any) -> tuple[str, str] | None:
    """The names and the text of a parameter, with bounds in words; None for a hidden one."""
    record = parameter.get_help_record(ctx)
    if record is None:
        return None
    names, text = record
    return _RANGE.sub(r"<\1>", names), _AT_LEAST.sub(r"at least \1]", text)


def write_in_capitals(argument: Any) -> None:
    """Name an argument as the pages do: MODEL."""
    argument.metavar = (argument.metavar or argument.name).upper()


class CommandHelp(TyperCommand):
    """A command whose help has a section for each panel."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The pieces of the first line, with arguments in capitals."""
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "argument":
                write_in_capitals(parameter)
        return list(super().collect_usage_pieces(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Every parameter in its section."""
        write_sections(self.get_params(ctx), ctx, formatter)


class GroupHelp(TyperGroup):
    """A group whose options come first, then its commands."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Options, then commands."""
        write_sections(self.get_params(ctx), ctx, formatter)
        self.format_commands(ctx, formatter)


def command_app() -> typer.Typer:
    """The Typer application of a file that holds one command."""
    return typer.Typer(add_completion=False, **SETTINGS)


# Of every application.
SETTINGS: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
