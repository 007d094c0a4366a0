"""``surgery finetune``: run a recipe and write a full checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from surgery.colours import LABEL
from surgery.commands import completion, console
from surgery.commands.flags import RUNNING, run_flags, with_flags
from surgery.commands.help import CommandHelp, command_app
from surgery.commands.next_steps import comparison
from surgery.errors import UsageError
from surgery.words import counted

if TYPE_CHECKING:
    from rich.progress import Progress

    from surgery.evaluation.estimates import Estimate
    from surgery.recovery import FinetunePlan, FinetuneResult, Setting
    from surgery.recovery.comparison import Comparison

# The optimizer's groups in words.
_GROUPS = {"scale": "of the operation", "weights": "weights", "no_decay": "of norms and biases"}
_Handler = Callable[[dict[str, Any]], None]


app = command_app()

_RecipeFile = Annotated[
    Path,
    typer.Argument(
        help="A YAML file, or a recipe that ships (`surgery recipes list`).", autocompletion=completion.recipes
    ),
]
_Dtype = Annotated[str, typer.Option(help="Overrides precision of the recipe.", rich_help_panel=RUNNING)]
_BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Overrides batch.sequences of the recipe.", rich_help_panel=RUNNING)
]


@app.command(cls=CommandHelp)
@with_flags(run=run_flags("device", "attn_implementation", "trust_remote_code"))
def finetune(
    recipe: _RecipeFile,
    run: Mapping[str, Any],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: optimizer.scale_lr=0.01.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run, exactly.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show steps, tokens, parameters, memory; no run.")] = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Show every value in force and its origin; no run.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --dry-run: run a trial step to estimate time and memory.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start again; replace an earlier output of this tool.")
    ] = False,
    json_: console.JsonOption = False,
    events: console.EventsOption = None,
    dtype: _Dtype = "",
    batch_size: _BatchSize = None,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Train a checkpoint as a recipe says.

    Writes a full checkpoint. A run that was interrupted is continued with --resume.
    """
    console.setup(verbose=verbose, quiet=quiet)
    from surgery import recovery
    from surgery.training.processes import is_first

    if measure and not dry_run:
        raise UsageError("--measure needs --dry-run", hint="A run takes a trial step in any case.")
    groups = [
        ("SURGERY_SET", recovery.environment_overrides()),
        ("--set", list(set_ or [])),
        ("--dtype", [f"precision={dtype}"] if dtype else []),
        ("--batch-size", [f"batch.sequences={batch_size}"] if batch_size is not None else []),
    ]
    if show_config:
        _show_config(recovery.explain_recipe(recipe, groups), json_=json_)
        return
    overrides = [override for _, given in groups for override in given]
    is_shown = is_first()
    with _listening(events if is_shown else None, quiet=quiet or dry_run or not is_shown) as on_progress:
        options = {**run, "resume": resume, "dry_run": dry_run, "measure": measure, "force": force}
        result = recovery.finetune(recipe, overrides=overrides, on_progress=on_progress, **options)
    if is_shown:
        _show_result(result, json_=json_)


def _show_result(result: FinetuneResult, *, json_: bool) -> None:
    from surgery.checkpoint import CONFIG_NAME

    if json_:
        console.emit("finetune", result.to_dict())
        return
    if result.output is None:
        console.out.print(_plan_table(result.plan))
        for note in result.plan.notes:
            console.note(note)
        console.next_run(without=("--dry-run", "--measure"))
        return
    console.out.print(_result_table(result))
    if result.comparison is not None:
        console.out.print(_comparison_table(result.comparison, result.notes))
    if (result.output / CONFIG_NAME).is_file():
        console.next_step(*_evaluation_of(result.output, list(result.controls.values())))
    else:
        console.next_step("surgery", "merge", str(result.output), "-o", f"{result.output}-merged")


def _evaluation_of(output: Path, controls: Sequence[Path]) -> list[str]:
    """The command that compares a trained checkpoint and its controls with their source, if any, on held-out texts.

    Where the recipe names none, it measures what needs no text.
    """
    from surgery.conversion.records import read_history
    from surgery.conversion.source_search import find_source
    from surgery.recovery import read_recipe

    recipe = read_recipe(output / "surgery" / str(read_history(output)[-1]["recipe"]))
    held_out = recipe.data.held_out if isinstance(recipe.data.held_out, list) else []
    # A model that `surgery new` made has no source.
    source = find_source(output, beside=[Path(recipe.model)]) if recipe.needs_operations else None
    return comparison([output, *controls], source, held_out)


def _show_config(settings: Sequence[Setting], *, json_: bool) -> None:
    """All values. --dtype and --batch-size win over --set, --set over SURGERY_SET, that over the file and defaults."""
    if json_:
        rows = [{"key": item.key, "value": item.value, "from": item.origin} for item in settings]
        console.emit("recipe-config", {"config": rows})
        return
    table = Table(box=None)
    for heading in ("key", "value", "from"):
        table.add_column(heading, overflow="fold")
    for item in settings:
        style = LABEL if item.origin == "default" else None
        table.add_row(item.key, Text(json.dumps(item.value, ensure_ascii=False)), item.origin, style=style)
    console.out.print(table)


@contextmanager
def _listening(events: Path | None, *, quiet: bool) -> Iterator[_Handler]:
    """One handler for the bar and for the file of events."""
    with ExitStack() as stack:
        handlers: list[_Handler] = []
        handlers.append(stack.enter_context(console.event_writer(events)))
        if not quiet:
            handlers.append(_Bar(stack.enter_context(console.progress())))

        def tell(event: dict[str, Any]) -> None:
            for handler in handlers:
                handler(event)

        yield tell


class _Bar:
    """Training as one bar; evaluations and checkpoints as lines above it."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("reading", total=None, rate="")

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        kind = event["event"]
        if kind in ("reading", "tokenizing"):
            self._bar.update(self._task, description=_reading(kind, event["documents"], event["of"]))
        elif kind == "held_out":
            share = f"{event['done']:,} of {event['total']:,} sequences"
            self._bar.update(self._task, description=f"held-out loss, {share}")
        elif kind == "plan":
            self._bar.reset(self._task, description="trial step and save", total=event["steps"])
            for note in event["notes"]:
                console.err.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        elif kind == "sharding":
            held, whole = event["held"], event["parameters"]
            console.err.print(f"sharded: this process holds {held:,} of {whole:,} numbers", highlight=False)
        elif kind == "trial":
            self._bar.update(self._task, description="held-out loss")
        elif kind == "evaluation":
            who = f"{event['control']}, " if "control" in event else ""
            console.err.print(f"{who}step {event['step']}: held-out loss {event['held_out_loss']:.4f}", highlight=False)
            self._bar.update(self._task, description="training")
        elif kind == "step":
            self._bar.update(
                self._task,
                completed=event["step"],
                description=f"training, loss {event['loss']:.4f}"
                + (f", {event['rejected']:.1%} of the keys rejected" if "rejected" in event else ""),
                rate=f"{event['tokens_per_second']:,.0f} tokens/s",
            )
        elif kind == "stopping":
            last = event["checkpoint"]
            saved = "no checkpoint yet" if last is None else f"last checkpoint step {last}"
            text = f"finishing step {event['step']}, then saving; again: stop now, {saved}"
            console.err.print(text, highlight=False, markup=False, soft_wrap=True)
        elif kind == "control":
            self._bar.update(self._task, description=f"control: {event['control']}", completed=0)
        elif kind == "writing":
            self._bar.update(self._task, description="writing")


def _reading(what: str, documents: int, of: int | None) -> str:
    return f"{what}, {counted(documents, 'document')}" if of is None else f"{what}, {documents:,} of {of:,} documents"


def _times(passes: float) -> str:
    return f"{passes:,.1f}" if passes >= 0.1 else f"{passes:.1g}"


def _plan_table(plan: FinetunePlan) -> Table:
    from surgery.checkpoint import format_size

    table = Table(title=f"finetune {plan.model}: {plan.what}", show_header=False, title_justify="left")
    rows = {
        "output": plan.output,
        "steps": f"{plan.steps:,} of {plan.tokens_per_step:,.0f} tokens",
        "tokens": f"{plan.tokens:,}" + ("" if plan.streaming else f", the training text {_times(plan.passes)} times"),
        "training text": "streamed"
        if plan.streaming
        else f"{plan.train_tokens:,} tokens in {counted(plan.train_rows, 'sequence')}, "
        + counted(plan.train_documents, "document"),
        "held out": f"{plan.held_out_tokens:,} tokens in {counted(plan.held_out_rows, 'sequence')} of "
        + counted(plan.held_out_documents, "document")
        + ("" if plan.held_out_share is None else f", which hold {plan.held_out_share:.0%} of the text"),
        "layers": f"{len(plan.layers)}",
        "trained": ", ".join(f"{count:,} {_GROUPS[kind]}" for kind, count in plan.parameters.items())
        + f" of {plan.parameters_total:,} parameters",
        "precision": plan.precision,
        "memory (estimate)": f"{format_size(plan.memory.total)}: weights {format_size(plan.memory.weights)}, gradients "
        f"{format_size(plan.memory.gradients)}, optimizer {format_size(plan.memory.optimizer)}, activations "
        f"{format_size(plan.memory.activations)}",
    }
    if plan.estimate is not None:
        measured = plan.estimate
        rows["time (measured)"] = (
            f"{_duration(measured.total_seconds)} on {measured.device}: training "
            f"{_duration(measured.training_seconds)} at {', '.join(f'{each:.3g}' for each in measured.step_seconds)} s "
            f"a step, held-out loss {_duration(measured.held_out_seconds)}, controls "
            f"{_duration(measured.control_seconds)}"
        )
        rows["memory (measured)"] = f"{format_size(measured.peak_bytes)} at the peak of a trial step"
    for number, stage in enumerate(plan.stages):
        rows[f"stage {number + 1}"] = (
            f"{stage.name}: {stage.what}, {stage.objective}, {stage.steps:,} steps of {stage.tokens_per_step:,.0f} "
            f"tokens in sequences of {stage.sequence_length:,}"
            + "".join(f"; {said}" for said in stage.section_summaries.values())
        )
    rows |= plan.section_summaries
    if plan.teacher:
        rows["teacher"] = plan.teacher
    if plan.controls:
        rows["controls"] = f"{', '.join(own.name for own in plan.controls)}; each takes as long as the run itself"
        rows["their checkpoints"] = ", ".join(own.output for own in plan.controls if own.output) or "none"
    if plan.dropped_documents:
        rows["left out"] = f"{counted(plan.dropped_documents, 'document')} also among the held-out ones"
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _result_table(result: FinetuneResult) -> Table:
    table = Table(title=f"trained: {result.plan.what}", show_header=False, title_justify="left")
    before, after = result.held_out_loss_before, result.held_out_loss_after
    if before is not None and after is not None:
        table.add_row("held-out loss", f"{before:.4f} -> {after:.4f} ({after - before:+z.4f})")
    if result.rejected_before is not None and result.rejected_after is not None:
        table.add_row("keys rejected", f"{result.rejected_before:.1%} -> {result.rejected_after:.1%}, held-out text")
    table.add_row("steps", f"{result.steps:,}, {result.tokens:,} tokens, {result.seconds:,.1f} s")
    table.add_row("output", console.near(str(result.output)))
    for name, path in result.controls.items():
        table.add_row(f"control {name}", console.near(str(path)))
    table.add_row("record", "surgery/history.json, recipe.yaml, log.jsonl, training.png in it")
    return table


# From this width on, an interval has room beside its value; else it goes below it, whole.
_WIDE = 120


def _comparison_table(comparison: Comparison, notes: Sequence[str]) -> Table:
    """All models on the same held-out tokens, with intervals; differences are paired, so theirs are narrower."""
    table = Table(
        title=f"held-out loss, nats per token: {counted(comparison.tokens, 'token')} of "
        f"{counted(comparison.documents, 'document')}",
        title_justify="left",
        caption=f"{comparison.interval['level']:.0%} intervals: {comparison.interval['method']}, "
        f"{comparison.interval['samples']:,} samples; differences are paired",
        caption_justify="left",
    )
    for heading in ("model", "learned", "loss", "model - source", "recovered - model"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for model in comparison.models:
        against = comparison.difference(model.name, "source")
        gained = comparison.difference("recovered", model.name)
        table.add_row(
            model.name,
            f"{model.learned:,}",
            "diverged" if model.loss is None else _interval(model.loss, ""),
            _interval(against.difference, "+") if against else "",
            _interval(gained.difference, "+") if gained else "",
        )
    table.caption = "\n".join([str(table.caption), *notes])
    return table


def _interval(estimate: Estimate, sign: str) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{sign}z.4f}"
    gap = " " if console.out.width >= _WIDE else "\n"
    return f"{estimate.value:{sign}z.4f}{gap}({estimate.low:{sign}z.4f} to {estimate.high:{sign}z.4f})"
