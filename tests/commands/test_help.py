"""Help texts: what each shows, its order and its width, and that the commands are thin."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import typer

from surgery import commands
from surgery.commands.app import COMMANDS, app
from surgery.commands.flags import flags_of
from surgery.operations import OPERATIONS
from tests.commands.conftest import program

FILES = sorted(Path(commands.__file__).parent.glob("*.py"))
# Two screens of 24 lines.
LINES = 48
COLUMNS = 80
LONGEST_FUNCTION = 60
# Flags of `surgery convert` that no operation brings.
GENERAL = {
    *("--to", "--output", "--revision", "--allow-unverified", "--json", "--verbose", "--quiet", "--help"),
    *("--link", "--copy", "--push", "--dry-run", "--force"),
}
CALIBRATED = {"--calibrate", "--calibration", "--device", "--dtype", "--attn-implementation", "--trust-remote-code"}


def flags_in(text: str) -> set[str]:
    """The long flags that a help text lists; a flag begins its line."""
    lines = [line.split() for line in text.splitlines() if line.startswith("  -")]
    return {word.rstrip(",") for words in lines for word in words[:2] if word.startswith("--")}


def flags_of_operation(name: str) -> set[str]:
    operation = OPERATIONS[name]
    found = {flag.names[0] for flag in flags_of(operation.options).values()}
    if operation.calibration_settings is not None:
        found |= CALIBRATED | {flag.names[0] for flag in flags_of(operation.calibration_settings).values()}
    return found


@pytest.mark.parametrize("chosen", [(), *((name,) for name in OPERATIONS), tuple(OPERATIONS)[:2]])
@pytest.mark.parametrize("help_first", [False, True])
def test_the_help_of_convert_shows_the_options_of_the_chosen_operations(
    surgery: Any, chosen: tuple[str, ...], help_first: bool
) -> None:
    to = [part for name in chosen for part in ("--to", name)]
    ran = surgery("convert", "--help", *to) if help_first else surgery("convert", *to, "--help")
    assert ran.code == 0
    assert flags_in(ran.out) == GENERAL.union(*(flags_of_operation(name) for name in chosen))


def test_the_plain_help_of_convert_fits_two_screens_and_leads_to_the_operations() -> None:
    ran = program("convert", "--help", COLUMNS=str(COLUMNS))
    lines = ran.out.splitlines()
    assert ran.code == 0 and len(lines) <= LINES and max(map(len, lines)) <= COLUMNS
    assert "surgery convert --to NAME --help" in ran.out
    assert all(f"  {name} " in ran.out for name in OPERATIONS)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["zoo", "run"], ["recipes", "check"]])
def test_no_help_is_wider_than_80_columns(surgery: Any, command: list[str]) -> None:
    ran = surgery(*command, "--help")
    assert ran.code == 0 and max(map(len, ran.out.splitlines())) <= COLUMNS


@pytest.mark.parametrize("command", ["verify", "finetune", "new"])
def test_bounds_of_a_number_are_told_in_words(surgery: Any, command: str) -> None:
    arguments = ("new", "softmax") if command == "new" else (command,)
    told = " ".join(surgery(*arguments, "--help").out.split())
    assert "at least" in told and "range" not in told and "x>" not in told


def test_the_commands_stand_in_the_order_of_the_work(surgery: Any) -> None:
    listed = [line.split()[0] for line in surgery("--help").out.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed == list(COMMANDS)
    assert listed[:6] == ["inspect", "convert", "verify", "finetune", "evaluate", "report"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_begins_with_its_line_in_the_list(name: str) -> None:
    """The list is written without importing any command."""
    made: Any = typer.main.get_command(app)
    assert made.commands[name].help.splitlines()[0] == COMMANDS[name]


def test_an_unknown_command_is_answered_with_the_nearest(surgery: Any) -> None:
    ran = surgery("convrt")
    assert ran.code == 2 and "convert" in ran.err


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_function_of_the_commands_is_long(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_exit_code_is_named(path: Path) -> None:
    """No number ends a command: each is a member of ExitCode."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("Exit", "exit", "_exit"):
            assert not any(isinstance(argument, ast.Constant) for argument in node.args), ast.unparse(node)
