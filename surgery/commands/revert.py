"""``surgery revert``: the source of a converted checkpoint, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from surgery.commands import console
from surgery.commands.help import CommandHelp, command_app
from surgery.words import counted

if TYPE_CHECKING:
    from surgery.conversion.reversion import RevertResult


app = command_app()


@app.command(cls=CommandHelp)
def revert(
    model: Annotated[Path, typer.Argument(help="Converted checkpoint.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the source to.")],
    link: Annotated[bool, typer.Option("--link", help="Hard-link shards instead of copying.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier output of this tool.")] = False,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Restore the source of a converted checkpoint.

    Trained scales are dropped. Refused if the weights of the source were trained.
    """
    from surgery.conversion import revert as revert_checkpoint

    console.setup(verbose=verbose, quiet=quiet)
    with console.progress() as bar:
        task = bar.add_task("reverting", total=None, rate="")

        def on_bytes(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, rate=f"{done / 1e6:,.0f} MB")

        result = revert_checkpoint(
            model, output=output, mode="link" if link else "auto", force=force, on_bytes=on_bytes
        )
    if as_json:
        console.emit("revert", result.to_dict())
    else:
        how = ", ".join(sorted(set(result.placed.values())))
        what = f"{counted(result.files, 'file')}, {counted(len(result.placed), 'shard')} {how}"
        console.say(f"wrote {console.near(str(result.output))} ({what})")
        console.say(_compared(result))
        console.next_step("surgery", "inspect", str(result.output))


def _compared(result: RevertResult) -> str:
    """The result of the comparison with recorded hashes, in words."""
    if result.placed and len(result.compared) == len(result.placed):
        return "The weights are byte for byte those of the source (SHA-256)."
    why = (
        "linked files are not read"
        if "linked" in result.placed.values()
        else "hashes are known only after `convert --copy`, or for a model from the hub"
    )
    return (
        f"The weights come from the converted checkpoint and were not compared with the source ({why}). "
        "`surgery verify CONVERTED --against SOURCE` compares them."
    )
