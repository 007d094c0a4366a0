"""``surgery screen-sweep``: the loss against what screening saves, to choose from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.commands import console
from surgery.commands.calibration import calibration_settings, expected_seconds
from surgery.commands.flags import flags_of, run_flags, with_flags
from surgery.commands.help import CommandHelp, command_app
from surgery.commands.operation_flags import calibration_flags
from surgery.errors import UsageError
from surgery.operations import OPERATIONS

if TYPE_CHECKING:
    from pydantic import BaseModel

    from surgery import Sweep
    from surgery.loading import RunOptions

_RESULTS = "sweep.json"


app = command_app()

# The operation whose calibration is swept.
_OPERATION = next(operation for operation in OPERATIONS.values() if operation.swept)
_SETTINGS = ("save", "context", "lengths", "observe", "softness", "windows")
_MeasureOn = Annotated[
    list[str] | None,
    typer.Option(help="Other text to measure on (repeatable).", show_default="what is held out of --text"),
]
_Allow = Annotated[
    str | None,
    typer.Option(
        help="Estimated increases of the loss to allow, in nats per token; each gives a point.",
        show_default=",".join(f"{loss:g}" for loss in _OPERATION.swept),
    ),
]


@app.command("screen-sweep", cls=CommandHelp)
@with_flags(
    options=flags_of(_OPERATION.options, "layers", "heads", "sinks", panel=f"Options of {_OPERATION.name}"),
    settings={name: flag for name, flag in calibration_flags([_OPERATION.name]).items() if name in _SETTINGS},
    run=run_flags("device", "dtype", "attn_implementation", "trust_remote_code"),
)
def screen_sweep(
    model: Annotated[str, typer.Argument(help="Model folder or hub id, not converted.")],
    options: Mapping[str, Any],
    settings: Mapping[str, Any],
    run: Mapping[str, Any],
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="Text file, folder or quoted glob to choose on (repeatable)."),
    ] = None,
    measure_on: _MeasureOn = None,
    allow: _Allow = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the results.", show_default="./<model>-sweep")
    ] = None,
    revision: console.RevisionOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files of an earlier sweep.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the passes and their time; load no model.")] = False,
    allow_unverified: console.UnverifiedOption = False,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Measure the loss against saved keys, memory or time.

    Each loss increase that --allow names gives a point. The model is loaded once; nothing is converted.
    """
    console.setup(verbose=verbose, quiet=quiet)
    if not text:
        raise UsageError("no text was given to choose on", hint="Give several kinds: --text 'texts/*.txt'.")
    folder = output or Path(f"{Path(model).name or 'model'}-sweep")
    _check_before_work(folder, [*text, *(measure_on or ())], force=force)
    chosen, run_options = calibration_settings(_OPERATION.name, settings, run)
    allowed = None if allow is None else _losses(allow)
    choices = len(set(allowed or _OPERATION.swept))
    plan = _plan(model, revision, chosen, options, choices, run_options, allow_unverified=allow_unverified)
    if dry_run:
        _show_plan(plan, as_json=as_json)
        return
    console.expect(plan["seconds"], plan["estimate"], "the sweep")
    result = _sweep(
        model,
        text,
        measure_on=measure_on or (),
        **({} if allowed is None else {"allowed": allowed}),
        options=options,
        settings=chosen,
        revision=revision,
        run=run_options,
        allow_unverified=allow_unverified,
    )
    written = _write(result, folder)
    if as_json:
        console.emit("sweep", {**result.to_dict(), "files": written})
        return
    _print(result)
    console.say(f"wrote {folder}: {', '.join(written)}")
    middle = f"{folder}/{_calibration_name(result.points[len(result.points) // 2].allowed)}"
    same = [*(["--revision", revision] if revision else []), *(["--allow-unverified"] if allow_unverified else [])]
    console.next_step("surgery", "convert", "--to", _OPERATION.name, model, "--calibration", middle, *same)


def _plan(
    model: str,
    revision: str | None,
    settings: BaseModel,
    options: Mapping[str, Any],
    choices: int,
    run: RunOptions,
    *,
    allow_unverified: bool,
) -> dict[str, Any]:
    """The passes of a sweep and about how long they take, as plain data."""
    from surgery.anatomy import read_anatomy
    from surgery.checkpoint import open_checkpoint, resolve
    from surgery.loading.pace import duration
    from surgery.operations.inspection import unverified_family

    source = resolve(model, revision)
    checkpoint = open_checkpoint(source)
    anatomy = read_anatomy(checkpoint, family=unverified_family(checkpoint) if allow_unverified else None)
    passes = _OPERATION.calibration_passes(settings, options, anatomy, choices) or []
    seconds = expected_seconds(passes, checkpoint, run)
    return {
        "model": source.name,
        "points": choices,
        "passes": [{"tokens": tokens, "count": round(count, 1)} for tokens, count in passes],
        "seconds": round(seconds, 1),
        "estimate": duration(seconds),
    }


def _show_plan(plan: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        console.emit("sweep-plan", dict(plan))
        return
    rows = [(f"{each['tokens']:,} tokens", f"{each['count']:,.0f} forward passes") for each in plan["passes"]]
    console.listing(f"Sweep of {plan['model']}, {plan['points']} points", rows)
    console.say(f"{plan['estimate']} on this processor; on a GPU less")
    console.next_run()


def _sweep(model: str, text: list[str], **settings: Any) -> Sweep:
    """Sweep with a progress bar."""
    from surgery import sweep

    console.silence_transformers()
    with console.progress() as bar:
        task = bar.add_task("sweeping", total=None, rate="")

        def on_progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what, rate="")

        return sweep(model, text, on_progress=on_progress, **settings)


def _check_before_work(folder: Path, texts: list[str], *, force: bool) -> None:
    """Before torch is imported: texts are there, and a sweep goes into a new folder, or in place of an earlier one.

    Raises:
        UsageError: a text is missing, or the folder holds something else, or a sweep and ``force`` is not given.
    """
    from surgery.checkpoint.disk import check_writable
    from surgery.checkpoint.names import quote
    from surgery.checkpoint.output import check_outside_models
    from surgery.data import read_documents

    read_documents(texts)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", hint="Give a folder: -o NAME.")
    check_outside_models(folder, quote(str(folder)))
    check_writable(folder)
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if found and _RESULTS not in found:
        raise UsageError(
            f"{folder} holds a file that is not of a sweep: {found[0]}", hint="Give another -o, or an empty folder."
        )
    if found and not force:
        raise UsageError(f"{folder} holds a sweep already", hint="Give another -o, or --force to replace it.")


def _losses(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < value < 100 for value in found):
        raise UsageError(
            f"--allow {text!r}: not numbers above 0 with commas between", hint="Pass for example --allow 0.002,0.005."
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
    save, context = result.settings["save"], result.settings["context"]
    what = "keys rejected" if context is None else f"{save} saved at {context:,} tokens"
    table = Table(title=f"Loss against {what}, measured on {where}", title_justify="left")
    for column in ("allowed", "saved", "tokens", "keys rejected", "cache kept", "blocks skipped", "change", "worst"):
        table.add_column(column, justify="right", overflow="fold")
    for point in result.points:
        for number, length in enumerate(point.lengths):
            table.add_row(
                f"{point.allowed:g}" if number == 0 else "",
                f"{point.saved:.1%}" if number == 0 else "",
                f"{length.tokens:,}",
                f"{length.rejected:.1%}",
                f"{length.cache:.1%}",
                f"{length.blocks:.1%}",
                f"{length.change:+.4f}",
                f"{length.worst:+.4f}",
            )
    console.out.print(table)
