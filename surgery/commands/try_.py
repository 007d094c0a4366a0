"""``surgery try``: which operation helps a model at a length, each against its control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.commands import console
from surgery.commands.flags import run_flags, run_options, with_flags
from surgery.commands.help import CommandHelp, command_app

if TYPE_CHECKING:
    from surgery.trial import TrialPlan, TrialResult
    from surgery.trial.plan import TrialStep

app = command_app()

_Text = Annotated[
    list[str] | None,
    typer.Option("--text", help="Text file, folder or quoted glob; a part is measured on alone (repeatable)."),
]
_Length = Annotated[
    int | None,
    typer.Option(
        help="Tokens of the longest texts.", show_default="the longest up to 4096 that fits into texts and time"
    ),
]
_Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder of the trial.", show_default="./<model>-trial")
]


@app.command("try", cls=CommandHelp)
@with_flags(run=run_flags("device", "dtype", "attn_implementation", "trust_remote_code"))
def try_model(
    model: Annotated[str, typer.Argument(help="Model folder or hub id, not converted.")],
    run: Mapping[str, Any],
    text: _Text = None,
    length: _Length = None,
    minutes: Annotated[float, typer.Option(help="Time that the trial may take; the work shrinks to fit.")] = 10.0,
    output: _Output = None,
    revision: console.RevisionOption = None,
    force: Annotated[bool, typer.Option("--force", help="Begin anew where the output holds a trial.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the steps and their time; load no model.")] = False,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Find out what helps a model at a length.

    Calibrates each operation, measures it and its control on other text, and recommends only what an interval shows.
    The same command goes on with an interrupted trial.
    """
    console.setup(verbose=verbose, quiet=quiet)
    how: dict[str, Any] = {"length": length, "minutes": minutes, "revision": revision, "run": run_options(run)}
    console.silence_transformers()
    if dry_run:
        from surgery.trial import plan_trial

        _show_plan(plan_trial(model, text or (), **how), as_json=as_json)
        return
    result = _try(model, text or [], output=output, force=force, **how)
    if as_json:
        console.emit("trial", result.to_dict())
        return
    _show_result(result)


def _try(model: str, text: list[str], **how: Any) -> TrialResult:
    """The trial with its steps and a progress bar."""
    from surgery import trial
    from surgery.trial.api import default_output

    with console.progress() as bar:
        task = bar.add_task("reading texts", total=None, rate="")
        whole = _Whole()

        def on_plan(plan: TrialPlan) -> None:
            whole.steps = plan.steps
            console.note(f"the trial takes {plan.estimate}, at {plan.length:,} tokens")
            for line in plan.left_out:
                console.note(f"left out: {line}")

        def on_step(number: int, of: int, step: TrialStep) -> None:
            console.note(f"step {number} of {of}: {step.what}")
            whole.begin(number)
            bar.update(task, completed=whole.seconds, total=whole.total)

        def on_progress(done: int, total: int, what: str) -> None:
            whole.advance(done / max(total, 1))
            bar.update(task, completed=whole.seconds, total=whole.total, description=whole.at(what))

        try:
            return trial.try_model(model, text, on_plan=on_plan, on_step=on_step, on_progress=on_progress, **how)
        except KeyboardInterrupt:
            kept = how["output"] or default_output(model)
            found = f"finished steps are in {kept}; run the same command to go on"
            console.note(found if Path(kept).is_dir() else "no step was finished; nothing was written")
            raise


class _Whole:
    """How much of a trial is done: its steps weigh as many seconds as the plan gives them."""

    def __init__(self) -> None:
        self.steps: Sequence[TrialStep] = ()
        self.number, self.seconds = 0, 0.0

    @property
    def total(self) -> float | None:
        """Of all steps; None before there is a plan."""
        return sum(step.seconds for step in self.steps) or None

    def begin(self, number: int) -> None:
        """A step, counted from 1, begins."""
        self.number = number
        self.seconds = self._before()

    def advance(self, share: float) -> None:
        """A share of the step is done. A step may count its work more than once: what is done stays done."""
        if self.number:
            step = self.steps[self.number - 1].seconds
            self.seconds = max(self.seconds, self._before() + step * min(1.0, share))

    def _before(self) -> float:
        """Seconds of the steps before this one."""
        return sum(step.seconds for step in self.steps[: self.number - 1])

    def at(self, what: str) -> str:
        """What is done, with the number of its step."""
        return f"step {self.number} of {len(self.steps)}: {what}" if self.number else what


def _show_plan(plan: TrialPlan, *, as_json: bool) -> None:
    if as_json:
        console.emit("trial-plan", plan.to_dict())
        return
    rows = [(f"{number} of {len(plan.steps)}", step.what) for number, step in enumerate(plan.steps, 1)]
    console.listing(f"Trial of {plan.model} at {plan.length:,} tokens", rows)
    for line in plan.left_out:
        console.note(f"left out: {line}")
    console.say(f"{plan.estimate} on this processor; the run times the model itself first, and does more if it can")
    console.next_run()


def _show_result(result: TrialResult) -> None:
    """The recommendation, the reasons, and the commands to go on with."""
    from surgery.checkpoint import format_size

    console.say(result.sentence)
    console.say()
    for finding in result.findings:
        console.say(f"- {console.printable(finding.sentence)}")
    console.say()
    sizes = ", ".join(f"{name} {format_size(size)}" for name, size in result.cache.items())
    console.say(f"Key-value cache at {result.plan.length:,} tokens, computed: {sizes}.")
    console.say(f"This rests on {'; '.join(map(console.printable, result.rests_on))}.")
    console.say(f"Not measured: {'; '.join(map(console.printable, result.not_measured))}.")
    console.say(f"All numbers: {result.folder / 'trial.json'}")
    for command in result.commands:
        console.next_step(command)
