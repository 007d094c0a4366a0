"""``surgery evaluate``: what the surgery did to the loss, position by position."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from surgery.commands import console
from surgery.commands.app import app
from surgery.errors import UsageError


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder or hub id.")],
    against: Annotated[str | None, typer.Option(help="Base to compare with: folder or hub id.")] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="Text file, folder or quoted glob to measure on (repeatable).")
    ] = None,
    length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 4096,
    documents: Annotated[
        int | None, typer.Option(help="Measure at most so many sequences, from as many texts as possible.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the report [default: ./<model>-evaluation].")
    ] = None,
    device: console.DeviceOption = "auto",
    dtype: console.DtypeOption = "auto",
    batch_size: console.BatchSizeOption = 1,
    attn_implementation: console.AttentionOption = None,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Measure loss and perplexity by position, compare with the base, and write a report with pictures."""
    console.setup(verbose=verbose, quiet=quiet)
    if not text:
        raise UsageError(
            "no text was given to measure on",
            hint="Give --text with files, folders or globs of plain text that the model was not trained on: "
            '--text "docs/**/*.md"',
        )
    from surgery import evaluation, reporting
    from surgery.checkpoint import dump_json, resolve

    source = resolve(model)
    folder = output or Path(f"{source.name.rsplit('/', 1)[-1]}-evaluation")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder}: there is a file of this name.", hint="Give a folder.")
    run = _run_options(device=device, dtype=dtype, batch_size=batch_size, attn_implementation=attn_implementation)
    console.silence_transformers()
    with _progress() as on_progress:
        result = evaluation.evaluate(
            model,
            against=against,
            text=text,
            length=length,
            documents=documents,
            run=run,
            on_progress=on_progress,
        ).to_dict()

    provenance = {
        "command": _command_line(model, text, against=against, length=length, documents=documents, dtype=dtype),
        "measured": time.strftime("%Y-%m-%d"),
        "version of": _versions(),
    }
    document = {"schema": console.SCHEMA_VERSION, "kind": "evaluation", **result, "provenance": provenance}
    data = reporting.replace_file(folder / "evaluation.json", dump_json(document).encode())
    history = evaluation.training_history(source.folder)
    files = reporting.write_report(result, folder, history=history, provenance=provenance)
    written = [path.as_posix() for path in (data, files.html, *files.pngs)]
    if as_json:
        console.emit("evaluation", {**result, "provenance": provenance, "files": written})
        return
    console.out.print(reporting.terminal_table(result))
    console.out.print()
    console.out.print(f"report: {files.html}", markup=False, highlight=False, soft_wrap=True)


def _command_line(model: str, text: list[str], **given: object) -> str:
    """The command that measures the same again."""
    options = [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
    texts = [part for name in text for part in ("--text", name)]
    return shlex.join(["surgery", "evaluate", model, *options, *texts])


def _run_options(**given: Any) -> Any:
    from pydantic import ValidationError

    from surgery.loading import RunOptions

    try:
        return RunOptions(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{option} {first['input']}: {first['msg'].lower()}") from error


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    with console.progress() as bar:
        task = bar.add_task("reading texts", total=None, rate="")
        began: list[float] = []

        def on_progress(done: int, total: int, label: str) -> None:
            if not began:
                began.append(time.monotonic())
            elapsed = time.monotonic() - began[0]
            rate = f"{done / elapsed:,.0f} tokens/s" if done and elapsed else ""
            bar.update(task, completed=done, total=total, description=label, rate=rate)

        yield on_progress


def _versions() -> dict[str, str]:
    found = {}
    for name in ("model-surgery", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
