"""``surgery refresh``: the code that travels in a converted checkpoint, brought to this version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgery.commands import console
from surgery.commands.help import CommandHelp, command_app

app = command_app()


@app.command(cls=CommandHelp)
def refresh(
    model: Annotated[Path, typer.Argument(help="Converted checkpoint.")],
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
) -> None:
    """Update the modelling code of a converted checkpoint.

    Rewrites the code in the checkpoint to the version of this surgery. Tensors and config.json do not change.
    """
    from surgery.conversion import refresh as refresh_checkpoint

    console.setup(verbose=verbose)
    result = refresh_checkpoint(model)
    if as_json:
        console.emit("refresh", result.to_dict())
        return
    said = (
        f"{result.model}: wrote the code of version {result.tool_version} ({result.after[:16]})"
        if result.changed
        else f"{result.model}: the code is this version's already ({result.after[:16]})"
    )
    console.say(said)
