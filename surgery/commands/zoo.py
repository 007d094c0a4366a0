"""``surgery zoo``: plan, convert and verify many checkpoints, each in its own process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.colours import NOTE
from surgery.commands import console
from surgery.commands.help import SETTINGS, CommandHelp, GroupHelp
from surgery.commands.zoo_manifests import check, init, reference, schema
from surgery.errors import ExitCode, UsageError
from surgery.zoo.engines import SUMMARIES, EngineName

if TYPE_CHECKING:
    from surgery.zoo.plan import ZooPlan

app = typer.Typer(
    cls=GroupHelp,
    help="Convert many checkpoints from one manifest.",
    no_args_is_help=True,
    add_completion=False,
    **SETTINGS,
)

_Handler = Callable[[Mapping[str, Any]], None]
_Manifest = Annotated[
    Path, typer.Argument(metavar="MANIFEST", help="A YAML file; `surgery zoo reference` prints every key.")
]
_Force = Annotated[bool, typer.Option("--force", help="Replace outputs that are not in the ledger or are out of date.")]
_Address = Annotated[
    str | None, typer.Option(help="Address of a Ray cluster, or auto; by default a cluster starts on this machine.")
]


_Push = Annotated[
    str | None,
    typer.Option(
        metavar="OWNER", help="Then upload each output with its card to OWNER/OUTPUT on the hub; a new one is private."
    ),
]
_Engine = Annotated[
    EngineName, typer.Option(help="; ".join(f"{engine}: {summary}" for engine, summary in SUMMARIES.items()) + ".")
]


@app.command(cls=CommandHelp)
def plan(
    manifest: _Manifest,
    force: _Force = False,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
) -> None:
    """Show the cost of each item, and the refused items. Reads headers only, writes nothing, needs no torch.

    Exit code 5 if some items are refused, 3 if also none is ready or done.
    """
    from surgery.commands.zoo_tables import plan_table
    from surgery.zoo.zoo import open_zoo

    console.setup(verbose=verbose)
    found = open_zoo(manifest).plan(force=force)
    if as_json:
        console.emit("zoo-plan", found.to_dict())
    else:
        console.out.print(plan_table(found, console.out.width))
        _advise([(row.item.name, row.hint) for row in found.rows])
        _warn(found)
    if found.of("refused"):
        raise typer.Exit(ExitCode.SOME_FAILED if found.of("ready") or found.of("done") else ExitCode.REFUSED)


@app.command(cls=CommandHelp)
def run(
    manifest: _Manifest,
    force: _Force = False,
    engine: _Engine = EngineName.local,
    ray_address: _Address = None,
    push: _Push = None,
    events: console.EventsOption = None,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Convert and verify all items that are not done yet. After an interruption the same command continues.

    Exit code 5 if some items failed, were refused, or could not be uploaded.
    """
    _run(manifest, force, engine, ray_address, push, events, as_json, verbose, quiet, only_failed=False)


@app.command(cls=CommandHelp)
def retry(
    manifest: _Manifest,
    force: _Force = False,
    engine: _Engine = EngineName.local,
    ray_address: _Address = None,
    push: _Push = None,
    events: console.EventsOption = None,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Run only the items that failed or were refused."""
    _run(manifest, force, engine, ray_address, push, events, as_json, verbose, quiet, only_failed=True)


@app.command(cls=CommandHelp)
def status(manifest: _Manifest, as_json: console.JsonOption = False, verbose: console.VerboseOption = False) -> None:
    """Show the state of each item, also during a run.

    Exit code 5 if an item failed, was refused or is out of date.
    """
    from surgery.zoo.zoo import zoo_status

    console.setup(verbose=verbose)
    _finish(zoo_status(manifest), as_json=as_json)


@app.command(cls=CommandHelp)
def report(manifest: _Manifest, as_json: console.JsonOption = False, verbose: console.VerboseOption = False) -> None:
    """Write summary.json and report.html from the ledger into the output folder, as every run does at its end."""
    from surgery.zoo.summaries import write_summary
    from surgery.zoo.zoo import open_zoo

    console.setup(verbose=verbose)
    opened = open_zoo(manifest)
    if not opened.ledger.is_file():
        raise UsageError(f"{opened.output} has no zoo yet", hint=f"Run `surgery zoo run {manifest}`.")
    files = [path.as_posix() for path in write_summary(opened.summary(), opened.output)]
    if as_json:
        console.emit("zoo-report", {"files": files})
    else:
        for path in files:
            console.say(f"wrote {path}")


for _command in (init, check, schema, reference):
    app.command(cls=CommandHelp)(_command)


def _run(
    manifest: Path,
    force: bool,
    engine: EngineName,
    ray_address: str | None,
    push: str | None,
    events: Path | None,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    *,
    only_failed: bool,
) -> None:
    from surgery.checkpoint.hub_upload import check_owner
    from surgery.zoo.run import run_zoo
    from surgery.zoo.summaries import write_summary
    from surgery.zoo.uploads import push_zoo
    from surgery.zoo.zoo import open_zoo

    console.setup(verbose=verbose, quiet=quiet)
    if ray_address is not None and engine is not EngineName.ray:
        raise UsageError("--ray-address needs --engine ray")
    opened = open_zoo(manifest)
    if only_failed and not opened.is_begun:
        raise UsageError(f"nothing was run yet in {opened.output}", hint=f"Run `surgery zoo run {manifest}`.")
    if push is not None:
        check_owner(push)  # before hours of work
    with _listening(events, quiet=quiet) as (on_plan, on_event):
        summary = run_zoo(
            opened,
            engine=engine,
            address=ray_address,
            force=force,
            only_failed=only_failed,
            on_plan=on_plan,
            on_event=on_event,
        )
        if push is not None and summary["ended"]:
            summary = push_zoo(opened, push, force=force, on_event=on_event)
    files = write_summary(summary, opened.output)
    if not summary["ended"]:
        console.err.print("interrupted; the same command continues the run", style=NOTE, markup=False, soft_wrap=True)
        raise typer.Exit(ExitCode.INTERRUPTED)
    _finish(summary, as_json=as_json, files=[path.as_posix() for path in files])


def _finish(summary: dict[str, Any], *, as_json: bool, files: list[str] | None = None) -> None:
    from surgery.commands.zoo_tables import summary_table

    if as_json:
        console.emit("zoo", {**summary, **({"files": files} if files else {})})
    else:
        console.out.print(summary_table(summary, console.out.width))
        _advise([(item["item"], item["hint"]) for item in summary["items"]])
        for path in files or ():
            console.say(f"wrote {path}")
    counts = summary["counts"]
    if counts["failed"] or counts["refused"] or counts["changed"] or summary["not_pushed"]:
        raise typer.Exit(ExitCode.SOME_FAILED)


def _advise(hints: Sequence[tuple[str, str | None]]) -> None:
    """Print each hint once. A command on its own line is not wrapped, so that users can copy it."""
    said: set[str] = set()
    for name, hint in hints:
        if not hint or hint in said:
            continue
        said.add(hint)
        for line in console.printable(f"note: {name}: {hint}").splitlines():
            is_command = line.startswith(" ")
            console.out.print(line, markup=False, highlight=False, soft_wrap=is_command or not console.out.is_terminal)


def _warn(found: ZooPlan) -> None:
    """Print each warning about what is to be done once, with the number of its items."""
    from rich.text import Text

    concerned: dict[str, list[str]] = {}
    for row in found.of("ready"):
        for warning in row.warnings:
            concerned.setdefault(warning, []).append(row.item.name)
    for warning, names in concerned.items():
        where = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        # On a terminal, wrap between words; elsewhere keep one line, for programs that read it.
        text = Text.assemble(("note:", NOTE), console.printable(f" {where}: {warning}"))
        console.err.print(text, soft_wrap=not console.err.is_terminal)


@contextmanager
def _listening(events: Path | None, *, quiet: bool) -> Iterator[tuple[Callable[[Any], None], _Handler]]:
    """Functions that show the plan and events: in the events file, and as a live table or as lines of a log."""
    from surgery.commands.zoo_tables import LiveTable, LogLines

    with ExitStack() as stack:
        handlers: list[_Handler] = [stack.enter_context(console.event_writer(events))]
        shown: LiveTable | LogLines | None = None
        if not quiet:
            shown = stack.enter_context(LiveTable(console.err)) if console.err.is_terminal else LogLines(console.err)
            handlers.append(shown)

        def on_event(event: Mapping[str, Any]) -> None:
            for handler in handlers:
                handler(event)

        def on_plan(found: ZooPlan) -> None:
            if shown is not None:
                shown.begin(found)

        yield on_plan, on_event
