"""The Typer application and its one entry point."""

from __future__ import annotations

import sys

import typer

from surgery.commands import console
from surgery.version import __version__

app = typer.Typer(
    name="surgery",
    help="Operate on the attention of existing language-model checkpoints.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"surgery {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Global options."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(console.run(app, arguments))


# Each command registers itself on the app when its file is imported; the order is that of --help.
from surgery.commands import inspect as _inspect  # noqa: E402, F401, I001
from surgery.commands import convert as _convert  # noqa: E402, F401
from surgery.commands import verify as _verify  # noqa: E402, F401
from surgery.commands import finetune as _finetune  # noqa: E402, F401
from surgery.commands import merge as _merge  # noqa: E402, F401
from surgery.commands import evaluate as _evaluate  # noqa: E402, F401
from surgery.commands import report as _report  # noqa: E402, F401
from surgery.commands import screen_sweep as _screen_sweep  # noqa: E402, F401
from surgery.commands import zoo as _zoo  # noqa: E402, F401
from surgery.commands import recipes as _recipes  # noqa: E402, F401
from surgery.commands import revert as _revert  # noqa: E402, F401
from surgery.commands import refresh as _refresh  # noqa: E402, F401
from surgery.commands import push as _push  # noqa: E402, F401
from surgery.commands import families as _families  # noqa: E402, F401
from surgery.commands import doctor as _doctor  # noqa: E402, F401
