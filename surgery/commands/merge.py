"""``surgery merge``: an adapter, or learned constants, into the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from surgery.checkpoint.record import PLAN_NAME
from surgery.commands import console
from surgery.commands.flags import run_flags, with_flags
from surgery.commands.help import CommandHelp, command_app
from surgery.commands.next_steps import comparison

app = command_app()


@app.command(cls=CommandHelp)
@with_flags(run=run_flags("device"))
def merge(
    model: Annotated[
        Path, typer.Argument(help="LoRA adapter, such as OUT/adapter, or a converted checkpoint of constants.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the merged checkpoint.")],
    run: Mapping[str, Any],
    base: Annotated[str | None, typer.Option(help="Of an adapter: folder or hub id; by default what it names.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier output of this tool.")] = False,
    json_: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Merge a LoRA adapter, or constants, into the weights.

    An adapter is added to its base. A checkpoint of SSMax's form constant becomes one of the source's own class, which
    every program loads without code. So does a checkpoint or an adapter's base whose operations change nothing: they
    are dropped. The result is written after checking that it gives the same logits.
    """
    console.setup(verbose=verbose, quiet=quiet)
    from surgery.recovery.weight_merge import merge as merge_weights

    with console.progress() as bar:
        task = bar.add_task("merging", total=None, rate="")

        def on_progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what, rate="")

        result = merge_weights(model, output=output, base=base, force=force, on_progress=on_progress, **run)
    if json_:
        console.emit("merge", result.to_dict())
    else:
        own = f", {result.operation_tensors} of them the operation's" if result.operation_tensors else ""
        console.out.print(
            f"wrote {console.near(str(result.output))}: {result.changed_tensors} tensors changed{own}; logits differ "
            f"from the unmerged model by {result.logit_difference:.1e} (allowed {result.tolerance:.0e})",
            markup=False,
            soft_wrap=True,
        )
        for name in result.dropped:
            console.out.print(f"dropped {name}: its learned numbers change nothing", markup=False, soft_wrap=True)
        console.next_step(*_next(result.output, model))


def _next(output: Path, merged: Path) -> list[str]:
    """Verify a checkpoint that still has operations; compare one without any with its source."""
    from surgery.conversion.source_search import find_source

    if (output / PLAN_NAME).is_file():
        return ["surgery", "verify", str(output)]
    source = find_source(merged)
    return ["surgery", "inspect", str(output)] if source is None else comparison([output], source)
