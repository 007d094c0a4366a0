"""``surgery revert``: the source of a converted checkpoint, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgery.commands import console
from surgery.commands.app import app


@app.command()
def revert(
    model: Annotated[Path, typer.Argument(help="Converted checkpoint.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the source to.")],
    link: Annotated[bool, typer.Option("--link", help="Hard-link shards instead of copying.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output.")] = False,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Give the source back. Trained scales are dropped; after the weights were trained it refuses."""
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
        written = f"wrote {result.output} ({result.files} files, {len(result.placed)} shard(s) {how})"
        console.out.print(written, markup=False, highlight=False, soft_wrap=True)
        console.out.print(
            "The weights are those of the converted checkpoint; that they are still the source's was not checked. "
            "`surgery verify CONVERTED --against SOURCE` compares them.",
            markup=False,
            soft_wrap=True,
        )
