"""``surgery report``: a page, a card's Markdown and pictures from what was measured."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from surgery.commands import console
from surgery.commands.app import app
from surgery.errors import UsageError


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Results folders, or folders that `evaluate` wrote.")],
    against: Annotated[
        str | None, typer.Option(help="The base, by name or fingerprint.", show_default="as it was measured")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("report"),
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Put finished measurements side by side: one HTML page, Markdown for a card, pictures as PNG and SVG."""
    console.setup(verbose=verbose, quiet=quiet)
    from surgery.evaluation.collecting import collect

    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output}: there is a file of this name.", hint="Give a folder.")
    found = collect(results, against=against)
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
    """``evaluation.json`` and the report; returns what was written."""
    from surgery import reporting
    from surgery.checkpoint import dump_json

    content = {"schema": console.SCHEMA_VERSION, "kind": "evaluation", **document}
    data = reporting.replace_file(folder / "evaluation.json", dump_json(content).encode())
    histories = [document["trainings"].get(use["fingerprint"], []) for use in document["models"]]
    with console.progress() as bar:
        bar.add_task("drawing", total=None, rate="")
        files = reporting.write_report(document, folder, histories=histories, provenance=document["provenance"])
    return [path.as_posix() for path in (data, files.html, files.markdown, *files.pictures)]
