"""``surgery verify``: check a converted checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.colours import STATES
from surgery.commands import console
from surgery.commands.flags import run_flags, run_options, with_flags
from surgery.commands.help import CommandHelp, command_app
from surgery.commands.next_steps import comparison, texts_here
from surgery.errors import ExitCode

if TYPE_CHECKING:
    from rich.table import Table

    from surgery.loading import RunOptions
    from surgery.verification import Verification, VerificationPlan


app = command_app()

_Length = Annotated[
    int | None,
    typer.Option(min=16, help="Tokens for the comparison with the source.", show_default="128, or 512 with --thorough"),
]


@app.command(cls=CommandHelp)
@with_flags(run=run_flags("device", "attn_implementation", "trust_remote_code"))
def verify(
    model: Annotated[Path, typer.Argument(help="Converted checkpoint, or a model of `surgery new`.")],
    run: Mapping[str, Any],
    against: Annotated[str | None, typer.Option(help="The source: folder or hub id.")] = None,
    revision: console.RevisionOption = None,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Check every byte on the disk, run no model; needs no torch.")
    ] = False,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Run only the first N layers (a big model on a small machine).")
    ] = None,
    length: _Length = None,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Repeat more, on more tokens; the checks are the same.")
    ] = False,
    max_loss_increase: Annotated[
        float | None,
        typer.Option(help="Fail if the loss on --text rises by more nats per token than this.", show_default=False),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="Text for --max-loss-increase: file, folder or quoted glob.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the steps and their time; run nothing.")] = False,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Check that a converted checkpoint is correct.

    Checks files, loading, logits and n, in float32. Exit code 4 if a check fails.
    """
    console.setup(verbose=verbose, quiet=quiet)
    from surgery.verification.workload import plan_verification

    how: dict[str, Any] = {
        "against": against,
        "revision": revision,
        "files_only": files_only,
        "layers": layers,
        "length": length,
        "thorough": thorough,
    }
    options = run_options(run)
    plan = plan_verification(model, with_loss=max_loss_increase is not None, **how)
    if dry_run:
        _show_plan(plan, as_json=as_json)
        return
    console.expect(plan.seconds, plan.estimate, "the verification")
    result = _verify(model, **how, max_loss_increase=max_loss_increase, text=text or (), run=options)
    if as_json:
        console.emit("verification", result.to_dict())
    else:
        if result.sentence and layers is None:
            console.say(result.sentence)
        console.out.print(_table(result))
        console.out.print(result.verdict, style=f"bold {STATES['failed' if result.failed else 'passed']}")
        if not result.failed:
            console.next_step(*_next(result, model, against))
    if result.failed:
        raise typer.Exit(ExitCode.VERIFICATION_FAILED)


def _verify(model: Path, *, run: RunOptions, **how: Any) -> Verification:
    """Verify with a progress bar."""
    if not how["files_only"]:
        console.silence_transformers()
    from surgery import verification

    with console.progress() as bar:
        task = bar.add_task("verifying", total=None, rate="")

        def on_progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        return verification.verify(model, run=run, on_progress=on_progress, **how)


def _next(result: Verification, model: Path, against: str | None) -> list[str]:
    """Compare with the source; train what starts as the source, or what has none; measure what differs from it."""
    from surgery.anatomy import read_anatomy
    from surgery.checkpoint import load_json, open_checkpoint
    from surgery.checkpoint.record import NEW_NAME
    from surgery.conversion.source_search import find_source
    from surgery.schemas.shipped import shipped_files

    if (model / NEW_NAME).is_file():
        return _training(f"{load_json(model / NEW_NAME)['architecture']}-pretrain", model)
    source = against or find_source(model)
    if against is None and source is not None:
        return ["surgery", "verify", str(model), "--against", source]
    recipes = {recipe.name for recipe in shipped_files("recipes")}
    names = [f"{one['name']}-scale" for one in read_anatomy(open_checkpoint(model)).operations]
    recipe = next((name for name in names if name in recipes), None)
    if result.starts_as_source and recipe is not None:
        return _training(recipe, model)
    return comparison([model], source)


def _training(recipe: str, model: Path) -> list[str]:
    given = (f"model={model}", f"data.text={texts_here()}", f"output={model}-trained")
    return ["surgery", "finetune", recipe, *(word for one in given for word in ("--set", one))]


def _show_plan(plan: VerificationPlan, *, as_json: bool) -> None:
    if as_json:
        console.emit("verification-plan", plan.to_dict())
        return
    console.listing(f"Verify {plan.model}", [(step.what, f"{step.seconds:.1f} s") for step in plan.steps])
    console.say(f"{plan.estimate} on this processor; on a GPU less")
    console.next_run()


def _table(result: Verification) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(console.printable(result.model)), title_justify="left")
    for column in ("check", "result", "measured"):
        table.add_column(column)
    for check in result.checks:
        table.add_row(check.name, Text(check.status, style=STATES[check.status]), Text(console.printable(check.detail)))
    return table
