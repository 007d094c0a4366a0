"""The Typer application and its one entry point. A command's file is imported when the command is used."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from keyword import iskeyword
from types import MappingProxyType
from typing import Any

import typer

from surgery.commands import console
from surgery.commands.help import SETTINGS, GroupHelp
from surgery.version import __version__

# Every command in the order of the work, with the line that `surgery --help` shows. The file of a command has its name,
# and an underscore behind a word of Python.
COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "inspect": "Show the attention of a model and which operations apply.",
        "convert": "Convert a checkpoint, or show the plan of a conversion.",
        "verify": "Check that a converted checkpoint is correct.",
        "finetune": "Train a checkpoint as a recipe says.",
        "evaluate": "Measure models and compare them with the base.",
        "report": "Write a report from finished measurements.",
        "try": "Find out what helps a model at a length.",
        "new": "Make a model from random weights.",
        "screen-sweep": "Measure the loss against saved keys, memory or time.",
        "merge": "Merge a LoRA adapter, or constants, into the weights.",
        "revert": "Restore the source of a converted checkpoint.",
        "refresh": "Update the modelling code of a converted checkpoint.",
        "push": "Upload an output to the Hugging Face hub.",
        "zoo": "Convert many checkpoints from one manifest.",
        "recipes": "List, show, copy and check recipes.",
        "families": "List the supported families.",
        "doctor": "Check this machine: versions, devices, disks.",
    }
)


class LazyCommands(MutableMapping[str, Any]):
    """The commands by name. Each is made when it is looked up, from ``app`` of its file."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """The command of this name."""
        if name not in self._made:
            if name not in COMMANDS:
                raise KeyError(name)
            file = f"{name}_" if iskeyword(name) else name.replace("-", "_")
            module = import_module(f"surgery.commands.{file}")
            self._made[name] = typer.main.get_command(module.app)
            self._made[name].name = name
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        """Put a command in the place of another."""
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        """Forget what was made."""
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of the work."""
        return iter(COMMANDS)

    def __len__(self) -> int:
        """Number of commands."""
        return len(COMMANDS)


class SurgeryGroup(GroupHelp):
    """The group of all commands; its help imports no command."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = LazyCommands()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands with one line each."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(name="surgery", cls=SurgeryGroup, no_args_is_help=True, **SETTINGS)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"surgery {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Operate on the attention of existing language-model checkpoints.

    `surgery COMMAND --help` shows the options of a command.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(console.run(app, arguments))
