"""``surgery merge``: an adapter into the weights of its base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from surgery.commands import console
from surgery.commands.flags import run_flags, with_flags
from surgery.commands.help import CommandHelp, command_app

app = command_app()


@app.command(cls=CommandHelp)
@with_flags(run=run_flags("device"))
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of a LoRA adapter, such as OUT/adapter.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the merged checkpoint.")],
    run: Mapping[str, Any],
    base: Annotated[str | None, typer.Option(help="Folder or hub id; by default what the adapter names.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier output of this tool.")] = False,
    json_: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Merge a LoRA adapter into its base.

    Writes the merged checkpoint after checking that it gives the logits of the adapter on its base.
    """
    console.setup(verbose=verbose, quiet=quiet)
    from surgery.recovery.adapter_merge import merge as merge_adapter

    with console.progress() as bar:
        bar.add_task("merging and comparing", total=None, rate="")
        result = merge_adapter(adapter, output=output, base=base, force=force, **run)
    if json_:
        console.emit("merge", result.to_dict())
    else:
        console.out.print(
            f"wrote {result.output}: {result.changed_tensors} tensors changed, {result.operation_tensors} of them the "
            f"operation's; logits differ from the adapter on its base by {result.logit_difference:.1e} "
            f"(allowed {result.tolerance:.0e})",
            markup=False,
            soft_wrap=True,
        )
        console.next_step("surgery", "verify", str(result.output))
