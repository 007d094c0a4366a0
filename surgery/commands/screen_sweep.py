"""``surgery screen-sweep``: the loss against the share of keys that screening rejects, to choose from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.commands import completing, console
from surgery.commands.app import app
from surgery.errors import UsageError

if TYPE_CHECKING:
    from surgery.operations.screening.calibration.loss_sweep import Sweep

_RESULTS = "sweep.json"


@app.command("screen-sweep")
def screen_sweep(
    model: Annotated[str, typer.Argument(help="Model folder or hub id, not converted.")],
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="Text file, folder or quoted glob to choose on (repeatable)."),
    ] = None,
    measure_on: Annotated[
        list[str] | None,
        typer.Option(help="Other text to measure on (repeatable).", show_default="what is held out of --text"),
    ] = None,
    allow: Annotated[
        str | None,
        typer.Option(
            help="Losses to allow, as estimated, in nats per token; each gives a point.",
            show_default="0.001,0.002,0.005,0.01,0.02,0.05",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the results.", show_default="./<model>-sweep")
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="Tokens per passage.", show_default="1024,4096")] = None,
    passages: Annotated[
        str | None,
        typer.Option(
            help="Passages of the shortest length to observe, and to measure; of --measure-on, of each length.",
            show_default="8,4",
        ),
    ] = None,
    softness: Annotated[float | None, typer.Option(help="Width of the ramp below each threshold; 0 is hard.")] = None,
    windows: Annotated[
        console.Windows | None,
        typer.Option(
            help="A window for each head, or one for the heads of each key-value group, so that its cache can shrink.",
            show_default="head",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="full, sliding, chunked, all, or numbers: 0-3,7.",
            show_default="full",
            autocompletion=completing.layers,
        ),
    ] = None,
    heads: Annotated[str | None, typer.Option(help="Query heads: 0-3,7.", show_default="all")] = None,
    sinks: Annotated[
        int | None, typer.Option(help="First tokens of a document that are always kept.", show_default="4")
    ] = None,
    revision: console.RevisionOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files of an earlier sweep.")] = False,
    allow_unverified: console.UnverifiedOption = False,
    device: console.DeviceOption = "auto",
    dtype: console.DtypeOption = "auto",
    attn_implementation: console.AttentionOption = None,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Measure what screening costs at several budgets. The model is looked at once; nothing is converted."""
    from surgery.commands.calibrating import numbers, settings_from

    console.setup(verbose=verbose, quiet=quiet)
    if not text:
        raise UsageError("no text was given to choose on", hint="Give several kinds: --text 'texts/*.txt'.")
    folder = output or Path(f"{Path(model).name or 'model'}-sweep")
    _check_output(folder, force=force)
    chosen = {
        "lengths": numbers("--lengths", lengths),
        "passages": numbers("--passages", passages),
        "softness": softness,
        "windows": windows and windows.value,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    settings, run = settings_from(given, {"device": device, "dtype": dtype, "attn_implementation": attn_implementation})
    options = {"layers": layers, "heads": heads, "sinks": sinks}
    from surgery.operations.screening import calibration
    from surgery.operations.screening.calibration.loss_sweep import ALLOWED

    console.silence_transformers()
    with console.progress() as bar:
        task = bar.add_task("sweeping", total=None, rate="")

        def on_progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what, rate="")

        result = calibration.sweep(
            model,
            text,
            measure_on=measure_on or (),
            allowed=ALLOWED if allow is None else _losses(allow),
            options={name: value for name, value in options.items() if value is not None},
            settings=settings,
            revision=revision,
            run=run,
            on_progress=on_progress,
            allow_unverified=allow_unverified,
        )
    written = _write(result, folder)
    if as_json:
        console.emit("sweep", {**result.to_dict(), "files": written})
        return
    _print(result)
    console.out.print(f"wrote {folder}: {', '.join(written)}", markup=False, highlight=False, soft_wrap=True)
    middle = f"{folder}/{_calibration_name(result.points[len(result.points) // 2].allowed)}"
    unverified = ["--allow-unverified"] if allow_unverified else []
    console.next_step("surgery", "convert", "--to", "screening", model, "--calibration", middle, *unverified)


def _check_output(folder: Path, *, force: bool) -> None:
    """Before anything is measured: a sweep goes into a new folder, or in place of an earlier one.

    Raises:
        UsageError: the folder holds something else, or a sweep and ``force`` is not given.
    """
    from surgery.checkpoint.disk import check_writable

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file.", hint="Give a folder: -o NAME.")
    check_writable(folder)
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if found and _RESULTS not in found:
        raise UsageError(f"{folder} holds what is no sweep: {found[0]}.", hint="Give another -o, or an empty folder.")
    if found and not force:
        raise UsageError(f"{folder} holds a sweep already.", hint="Give another -o, or --force to replace it.")


def _losses(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < value < 100 for value in found):
        raise UsageError(
            f"--allow {text!r}: not numbers above 0 with commas between", hint="For example: --allow 0.002,0.005,0.01"
        )
    return found


def _calibration_name(allowed: float) -> str:
    return f"calibration-{allowed:g}.json"


def _write(result: Sweep, folder: Path) -> list[str]:
    """The points as calibrations, the picture, and last of all the results; the names of the files."""
    from surgery.reporting.report import replace_file
    from surgery.reporting.sweep import draw_sweep

    content = result.to_dict()
    files = {_calibration_name(point.allowed): _json(point.calibration.to_dict()) for point in result.points}
    files |= draw_sweep(content)
    files[_RESULTS] = _json({"schema": console.SCHEMA_VERSION, "kind": "sweep", **content})
    _remove_points(folder)
    return [replace_file(folder / name, data).name for name, data in files.items()]


def _remove_points(folder: Path) -> None:
    """The calibrations of an earlier sweep, which would be taken for points of this one."""
    from surgery.checkpoint import load_json

    if (folder / _RESULTS).exists():
        for point in load_json(folder / _RESULTS).get("points", ()):
            (folder / _calibration_name(point["allowed"])).unlink(missing_ok=True)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _print(result: Sweep) -> None:
    from rich.table import Table

    where = "other text" if result.other_text else "held-out text"
    table = Table(title=f"Loss against keys rejected, measured on {where}", title_justify="left")
    for column in ("allowed", "tokens", "passages", "keys rejected", "blocks skipped", "change", "worst"):
        table.add_column(column, justify="right", overflow="fold")
    for point in result.points:
        for number, length in enumerate(point.lengths):
            table.add_row(
                f"{point.allowed:g}" if number == 0 else "",
                f"{length.tokens:,}",
                str(length.passages),
                f"{length.rejected:.1%}",
                f"{length.blocks:.1%}",
                f"{length.change:+.4f}",
                f"{length.worst:+.4f}",
            )
    console.out.print(table)
