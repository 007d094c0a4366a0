"""``surgery evaluate``: measure a suite on models and their base."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.commands import completion, console
from surgery.commands.flags import run_flags, run_options, with_flags
from surgery.commands.help import CommandHelp, command_app
from surgery.commands.next_steps import comparison
from surgery.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from surgery.evaluation import EvaluationPlan

app = command_app()

_Suite = Annotated[
    str, typer.Option(help="What to measure: a suite that ships, or a YAML file.", autocompletion=completion.suites)
]
_Text = Annotated[
    list[str] | None, typer.Option("--text", help="Text file, folder or quoted glob to measure on (repeatable).")
]
_Length = Annotated[int | None, typer.Option(help="Tokens per sequence, instead of the suite's.", show_default=False)]
_Documents = Annotated[
    int | None,
    typer.Option(help="Measure at most this many sequences, from as many texts as possible.", show_default=False),
]
_Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder for the report.", show_default="./<model>-evaluation")
]
_Results = Annotated[
    Path | None, typer.Option(help="Folder of finished parts, which are not run again.", show_default="OUTPUT/results")
]
_Card = Annotated[bool, typer.Option("--card", help="Write the numbers into the card of each converted MODEL.")]


@app.command(cls=CommandHelp)
@with_flags(run=run_flags("device", "dtype", "batch_size", "attn_implementation", "trust_remote_code"))
def evaluate(
    run: Mapping[str, Any],
    model: Annotated[list[str] | None, typer.Argument(help="Model folders or hub ids.")] = None,
    against: Annotated[str | None, typer.Option(help="Base to compare with: folder or hub id.")] = None,
    suite: _Suite = "quick",
    list_suites: Annotated[bool, typer.Option("--list-suites", help="Name the suites that ship.")] = False,
    text: _Text = None,
    length: _Length = None,
    documents: _Documents = None,
    revision: console.RevisionOption = None,
    output: _Output = None,
    results: _Results = None,
    card: _Card = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier report in the output.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what is left to measure and its time; load no model.")
    ] = False,
    events: console.EventsOption = None,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Measure models and compare them with the base.

    Runs the parts of a suite on one or more models and writes a report with pictures.
    """
    console.setup(verbose=verbose, quiet=quiet)
    if list_suites:
        _list_suites(as_json=as_json)
        return
    if not model:
        raise UsageError(
            "no model was given", hint="Run for example `surgery evaluate MODEL --against BASE --text 'texts/**/*.md'`."
        )
    folder = output or Path(f"{Path(model[0]).name or 'model'}-evaluation")
    options = run_options(run)
    _check_arguments(model, against, suite, text, length, documents, revision)
    measured: dict[str, Any] = {"against": against, "suite": suite, "length": length, "documents": documents}
    if dry_run:
        _show_plan(model, folder, results, as_json=as_json, run=options, text=text, revision=revision, **measured)
        return
    _check_before_measuring(model, folder, events, card=card, force=force)
    result = _measure(model, folder, results, events, run=options, text=text, revision=revision, **measured)
    if dtype := run.get("dtype"):
        measured["dtype"] = dtype
    command = _command_line(model, text or [], **measured)
    document = {**result, "provenance": {"command": command, "measured": time.strftime("%Y-%m-%d")}}
    from surgery.commands.report import write_files

    written = write_files(document, folder)
    if card:
        _write_cards(model, result, document["provenance"])
    if as_json:
        console.emit("evaluation", {**document, "files": written})
        return
    console.show_report(document, folder)
    if against is not None and suite != "recall":
        console.next_step(*comparison(model, against), "-o", f"{folder}-recall")


def _check_arguments(
    models: list[str],
    against: str | None,
    suite: str,
    text: list[str] | None,
    length: int | None,
    documents: int | None,
    revision: str | None,
) -> None:
    """What can be told before torch is imported: names of suites, texts and models, and numbers.

    Raises:
        UsageError, CheckpointError: the first that is wrong.
    """
    from surgery.checkpoint import open_checkpoint, resolve
    from surgery.evaluation.suite import read_suite

    for option, value, least in (("length", length, 2), ("documents", documents, 1)):
        if value is not None and value < least:
            raise UsageError(f"--{option} {value}: must be at least {least}")
    read_suite(suite).changed(length=length, documents=documents).documents(text or ())
    for name, commit in (*((name, revision) for name in models), *([(against, None)] if against else [])):
        open_checkpoint(resolve(name, commit))


def _check_before_measuring(models: list[str], folder: Path, events: Path | None, *, card: bool, force: bool) -> None:
    """What would stop the command after the measuring is checked first.

    Raises:
        UsageError: the report or the cards cannot be written.
    """
    from surgery.evaluation.folders import check_report

    check_report(folder, force=force, beside=[events] if events is not None else [])
    if card:
        _check_cards(models)


def _measure(
    models: list[str], folder: Path, results: Path | None, events: Path | None, *, suite: str, text: Any, **options: Any
) -> dict[str, Any]:
    """Measure with a progress bar and a file of events; the result as plain data."""
    from surgery import evaluation
    from surgery.evaluation.folders import STORE
    from surgery.evaluation.suite import read_suite

    chosen = read_suite(suite)  # before transformers is imported: an error in a suite is found at once
    console.silence_transformers()
    finished = results or folder / STORE
    with console.event_writer(events) as write_event, _progress() as on_event:

        def handle(event: dict[str, Any]) -> None:
            write_event(event)
            on_event(event)

        try:
            result = evaluation.evaluate(
                models, text=text or (), suite=chosen, results=finished, on_event=handle, **options
            )
        except KeyboardInterrupt:
            kept = f"finished parts are in {finished}; run the same command to go on"
            console.note(kept if finished.is_dir() else "no part was begun; nothing was written")
            raise
    return result.to_dict()


def _show_plan(
    models: list[str], folder: Path, results: Path | None, *, suite: str, text: Any, as_json: bool, **options: Any
) -> None:
    from surgery import evaluation
    from surgery.evaluation.folders import STORE
    from surgery.evaluation.suite import read_suite

    chosen = read_suite(suite)
    console.silence_transformers()
    with _progress() as on_event:
        plan = evaluation.plan_evaluation(
            models, text=text or (), suite=chosen, results=results or folder / STORE, on_event=on_event, **options
        )
    if as_json:
        console.emit("evaluation-plan", plan.to_dict())
        return
    console.out.print(_plan_table(plan))
    for note in plan.notes:
        console.note(note)
    console.say(f"{plan.estimate} on this processor; on a GPU less" if plan.parts else "everything is measured already")
    console.next_run()


def _plan_table(plan: EvaluationPlan) -> Table:
    from rich.table import Table

    table = Table(title=f"left to measure of the suite {plan.suite}", title_justify="left")
    for column in ("part", "model", "units", "tokens", "seconds"):
        table.add_column(column, justify="left" if column in ("part", "model") else "right")
    for part in plan.parts:
        seconds = "unknown" if part.seconds is None else f"{part.seconds:,.0f}"
        table.add_row(part.kind, console.printable(part.model), f"{part.units:,}", f"{part.tokens:,}", seconds)
    return table


def _command_line(models: list[str], text: list[str], **given: object) -> str:
    """The command that measures the same again."""
    options = [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
    texts = [part for name in text for part in ("--text", name)]
    return shlex.join(["surgery", "evaluate", *models, *options, *texts])


def _check_cards(models: list[str]) -> None:
    """Only a checkpoint that surgery wrote has a card that `--card` may change.

    Raises:
        UsageError: a model is no such checkpoint.
    """
    from surgery.checkpoint.record import PLAN_NAME
    from surgery.conversion.external_save import is_saved_externally
    from surgery.conversion.records import has_own_card

    for name in models:
        if is_saved_externally(Path(name)):
            if not has_own_card(Path(name)):
                raise UsageError(f"--card: another program wrote the card of {name}, so it is not changed")
        elif not (Path(name) / PLAN_NAME).is_file():
            raise UsageError(f"--card: {name} is no converted checkpoint, so its card is not changed")


def _write_cards(models: list[str], result: dict[str, Any], provenance: dict[str, str]) -> None:
    from surgery import reporting
    from surgery.conversion.records import record_evaluation

    for number, name in enumerate(models):
        own = reporting.for_one_model(result, number)
        record = {
            **provenance,
            "verdict": [verdict["word"] for verdict in own["verdicts"]],
            "markdown": reporting.render_markdown(own, None, provenance={}),
        }
        record_evaluation(Path(name), record)


def _list_suites(*, as_json: bool) -> None:
    from rich.table import Table

    from surgery.schemas.shipped import shipped_files

    found = shipped_files("suites")
    if as_json:
        console.emit("suites", {"suites": [{"name": suite.name, "summary": suite.summary} for suite in found]})
        return
    table = Table(show_header=False, box=None)
    for suite in found:
        table.add_row(suite.name, suite.summary)
    console.out.print(table)


@contextmanager
def _progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    with console.progress() as bar:
        task = bar.add_task("reading texts", total=None, rate="")
        began: list[float] = []

        def on_event(event: dict[str, Any]) -> None:
            kind = event["event"]
            if kind == "fingerprint":
                bar.update(task, description=f"hashing {event['model']}", completed=event["done"], total=event["total"])
            elif kind == "tokenizing":
                done = f"{event['documents']:,} of {event['of']:,} documents"
                bar.update(task, description=f"tokenizing for {event['model']}, {done}")
            elif kind == "plan":
                for note in event["notes"]:
                    console.note(note)
                console.expect(event["seconds"], event["estimate"], "the evaluation")
                bar.reset(task, total=event["total"], description="measuring", rate="")
                began.append(time.monotonic())
            elif kind == "loading":
                bar.update(task, description=f"loading {event['model']}")
            elif kind == "tokens":
                elapsed = time.monotonic() - began[0]
                rate = f"{event['done'] / elapsed:,.0f} tokens/s" if elapsed else ""
                label = f"{event['kind']} of {event['model']}"
                bar.update(task, completed=event["done"], total=event["total"], description=label, rate=rate)

        yield on_event
