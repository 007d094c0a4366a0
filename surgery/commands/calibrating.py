"""What ``convert`` does for screening before the plan is final: calibrate on texts, or read a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.colours import NOTE
from surgery.commands import console
from surgery.errors import UsageError

if TYPE_CHECKING:
    from surgery.conversion.plan import PreparedPlan
    from surgery.loading import RunOptions
    from surgery.operations.screening.calibration import CalibrationSettings
    from surgery.operations.screening.calibration.results import Calibration


@dataclass(frozen=True)
class Asked:
    """What the flags say: texts, or a file; None where a flag was not given."""

    text: list[str] | None
    file: Path | None
    settings: Mapping[str, Any]
    run: Mapping[str, Any]


def numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    """``1024,4096`` as (1024, 4096).

    Raises:
        UsageError: the text is no such list.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(
            f"{flag} {text!r}: not whole numbers with commas between", hint=f"For example: {flag} 1024,4096"
        )
    return tuple(map(int, parts))


def plan_with_calibration(
    model: str,
    operations: Sequence[Mapping[str, Any]],
    asked: Asked,
    revision: str | None,
    *,
    dry_run: bool,
    allow_unverified: bool = False,
) -> PreparedPlan:
    """The plan of the operations; where texts were given, after calibrating on them. A dry run does not calibrate.

    Raises:
        UsageError: flags exclude each other, or are for an operation that was not chosen.
    """
    from surgery.conversion import make_plan

    plan = partial(make_plan, model, revision=revision, allow_unverified=allow_unverified)
    screening = next((given for given in operations if given["name"] == "screening"), None)
    given = {name: value for name, value in asked.settings.items() if value is not None}
    if screening is None and (asked.text or asked.file or given):
        flag = "--calibrate" if asked.text else "--calibration" if asked.file else _flag(next(iter(given)))
        raise UsageError(
            f"{flag} is no option of {' or '.join(str(one['name']) for one in operations)}",
            hint="It belongs to --to screening.",
        )
    if given and not asked.text:
        raise UsageError(
            f"{_flag(next(iter(given)))} says how to calibrate, but no text is given",
            hint="Give texts: --calibrate 'texts/*.txt'.",
        )
    idle = [name for name, value in asked.run.items() if value not in (None, "auto")]
    if idle and not asked.text:
        raise UsageError(
            f"{_flag(idle[0])} does nothing here: a conversion runs no model", hint="It belongs to --calibrate."
        )
    if sum(map(bool, (asked.text, asked.file, (screening or {}).get("open")))) > 1:
        raise UsageError("--calibrate, --calibration and --open exclude each other")
    if asked.file is not None:
        from surgery.operations.screening.calibration.results import read_calibration

        return plan(operations, calibration=read_calibration(asked.file))
    if not asked.text:
        return plan(operations)
    pending = [{**one, "calibration": "pending"} if one is screening else one for one in operations]
    prepared = plan(pending)
    if dry_run:
        return prepared
    calibration = _calibrate(model, prepared, asked, given, revision)
    return plan(operations, calibration=calibration)


def _calibrate(
    model: str, prepared: PreparedPlan, asked: Asked, given: dict[str, Any], revision: str | None
) -> Calibration:
    from surgery.operations.screening.calibration import calibrate

    console.silence_transformers()
    settings, run = settings_from(given, asked.run)
    resolved = {str(options["name"]): options for options in prepared.plan.operations}
    own = {
        name: resolved["screening"][name]
        for name in ("form", "renormalisation", "layers", "heads", "sinks", "full_window")
        if name in resolved["screening"]
    }
    if own.get("renormalisation") == 0:
        del own["sinks"]  # a unit keeps none
    with console.progress() as bar:
        task = bar.add_task("calibrating", total=None, rate="")

        def on_progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what, rate="")

        return calibrate(
            model,
            asked.text or [],
            options=own,
            before=[options for name, options in resolved.items() if name != "screening"],
            settings=settings,
            revision=revision,
            run=run,
            on_progress=on_progress,
            family=prepared.anatomy.family if prepared.anatomy.family.unverified else None,
        )


def settings_from(given: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[CalibrationSettings, RunOptions]:
    """Settings of a calibration and of what runs it, from flags that were given; ``passages`` are two numbers.

    Raises:
        UsageError: a value is not possible.
    """
    from pydantic import ValidationError

    from surgery.conversion.plan import problems
    from surgery.loading import RunOptions
    from surgery.operations.screening.calibration import CalibrationSettings

    settings = dict(given)
    counts = settings.pop("passages", None)
    if counts is not None:
        if len(counts) != 2:
            raise UsageError("--passages needs two numbers: to observe, and to hold out", hint="--passages 8,4")
        settings |= {"observe": counts[0], "hold_out": counts[1]}
    try:
        return CalibrationSettings.model_validate(settings), RunOptions.model_validate(dict(run))
    except ValidationError as error:
        raise UsageError(f"calibration: {problems(error)}") from error


def print_calibration(calibration: Any) -> None:
    """The guard's passages, the trials, and which heads stay open."""
    from rich.table import Table

    from surgery.conversion.card import summarize_numbers

    table = Table(title="Held-out text", title_justify="left")
    for column in ("text", "tokens", "loss", "change", "keys rejected"):
        table.add_column(column)
    for text in calibration.guard:
        name = console.printable(Path(text.text).name)
        table.add_row(name, str(text.tokens), f"{text.loss:.4f}", f"{text.change:+z.4f}", f"{text.rejected:.1%}")
    console.out.print(table)
    heads = sum(len(layer.open) for layer in calibration.layers)
    opened = sum(sum(layer.open) for layer in calibration.layers)
    whole = [layer.layer for layer in calibration.layers if all(layer.open)]
    console.out.print(
        f"{opened} of {heads} heads stay open: rejecting keys there costs more than it is worth"
        + (f" (all heads of layers {summarize_numbers(whole)})" if whole else "")
        if opened
        else f"all {heads} heads reject keys",
        highlight=False,
    )
    for warning in calibration.warnings:
        console.err.print("note:", style=NOTE, end=" ")
        console.err.print(warning, markup=False, highlight=False)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
