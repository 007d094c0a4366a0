"""``surgery verify``: check a converted checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.colours import STATES
from surgery.commands import console
from surgery.commands.flags import run_flags, with_flags
from surgery.commands.help import CommandHelp, command_app
from surgery.errors import ExitCode

if TYPE_CHECKING:
    from rich.table import Table

    from surgery.verification import Verification


app = command_app()


@app.command(cls=CommandHelp)
@with_flags(run=run_flags("device", "attn_implementation", "trust_remote_code"))
def verify(
    model: Annotated[Path, typer.Argument(help="Converted checkpoint.")],
    run: Mapping[str, Any],
    against: Annotated[str | None, typer.Option(help="The source: folder or hub id.")] = None,
    revision: console.RevisionOption = None,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Check every byte on the disk, run no model; needs no torch.")
    ] = False,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Run only the first N layers (a big model on a small machine).")
    ] = None,
    length: Annotated[int, typer.Option(min=16, help="Tokens for the comparison with the source.")] = 512,
    max_loss_increase: Annotated[
        float | None,
        typer.Option(help="Fail if the loss on --text rises by more nats per token than this.", show_default=False),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="Text for --max-loss-increase: file, folder or quoted glob.")
    ] = None,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Check that a converted checkpoint is correct.

    Checks files, loading, logits and n, in float32. Exit code 4 if a check fails.
    """
    console.setup(verbose=verbose, quiet=quiet)
    if not files_only:
        console.silence_transformers()
    from surgery.loading import RunOptions
    from surgery.verification import verify as verify_checkpoint

    with console.progress() as bar:
        task = bar.add_task("verifying", total=None, rate="")

        def on_progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        result = verify_checkpoint(
            model,
            against=against,
            revision=revision,
            files_only=files_only,
            layers=layers,
            length=length,
            max_loss_increase=max_loss_increase,
            text=text or (),
            run=RunOptions(**run),
            on_progress=on_progress,
        )
    if as_json:
        console.emit("verification", result.to_dict())
    else:
        if result.sentence and layers is None:
            console.say(result.sentence)
        console.out.print(_table(result))
        console.out.print(result.verdict, style=f"bold {STATES['failed' if result.failed else 'passed']}")
    if result.failed:
        raise typer.Exit(ExitCode.VERIFICATION_FAILED)


def _table(result: Verification) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(console.printable(result.model)), title_justify="left")
    for column in ("check", "result", "measured"):
        table.add_column(column)
    for check in result.checks:
        table.add_row(check.name, Text(check.status, style=STATES[check.status]), Text(console.printable(check.detail)))
    return table
