"""``surgery report``: a page, Markdown for a card, and pictures, from stored measurements."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from surgery.commands import console
from surgery.commands.help import CommandHelp, command_app

app = command_app()


@app.command(cls=CommandHelp)
def report(
    results: Annotated[list[Path], typer.Argument(help="Results folders, or folders that `evaluate` wrote.")],
    against: Annotated[
        str | None, typer.Option(help="The base, by name or fingerprint.", show_default="as it was measured")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("report"),
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier report in the output.")] = False,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Write a report from finished measurements.

    Puts finished measurements side by side: an HTML page, Markdown for a card, pictures as PNG and SVG.
    """
    console.setup(verbose=verbose, quiet=quiet)
    from surgery.evaluation.collection import collect
    from surgery.evaluation.folders import check_report

    found = collect(results, against=against)
    check_report(output, force=force)
    options = ["--against", against] if against is not None else []
    command = shlex.join(["surgery", "report", *map(str, results), *options])
    document = {
        **found.result.to_dict(),
        "provenance": {**found.provenance, "reported": command},
    }
    written = write_files(document, output)
    if as_json:
        console.emit("evaluation", {**document, "files": written})
        return
    console.show_report(document, output)


def write_files(document: Mapping[str, Any], folder: Path) -> list[str]:
    """``evaluation.json`` and the report, in place of an earlier one; returns the written files."""
    from surgery import reporting
    from surgery.checkpoint import dump_json
    from surgery.evaluation.folders import EVALUATION, written_before

    histories = [document["trainings"].get(use["fingerprint"], []) for use in document["models"]]
    with console.progress() as bar:
        bar.add_task("drawing", total=None, rate="")
        files = reporting.draw_report(document, histories=histories, provenance=document["provenance"])
    content = {"schema": console.SCHEMA_VERSION, "kind": "evaluation", "files": list(files), **document}
    before = written_before(folder)
    # First the file that marks the others as files of this tool.
    written = [reporting.replace_file(folder / EVALUATION, dump_json(content).encode())]
    written += [reporting.replace_file(folder / name, data) for name, data in files.items()]
    for name in set(before) - set(files):
        (folder / name).unlink(missing_ok=True)
    return [path.as_posix() for path in written]
