"""``surgery new``: a model from random weights; one subcommand for each architecture, with flags from its schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.commands import console
from surgery.commands.flags import flags_of, with_flags
from surgery.commands.help import SETTINGS, CommandHelp, GroupHelp
from surgery.commands.next_steps import TEXTS, texts_here
from surgery.models import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from surgery.models import NewPlan

app = typer.Typer(
    cls=GroupHelp, add_completion=False, help="Make a model from random weights.", no_args_is_help=True, **SETTINGS
)

_VOCABULARY = "Vocabulary"
# Hashes decide which documents are held out. With so many documents, a share of 2% holds out at least one.
_MANY = 500

_Output = Annotated[Path, typer.Option("--output", "-o", help="Output folder.")]
_Tokenizer = Annotated[
    Path | None, typer.Option(help="Model folder whose tokenizer is copied.", rich_help_panel=_VOCABULARY)
]
_VocabSize = Annotated[
    int | None,
    typer.Option(
        help="Number of tokens; with --train-tokenizer the largest number.",
        show_default=False,
        min=1,
        rich_help_panel=_VOCABULARY,
    ),
]
_TrainTokenizer = Annotated[
    list[str] | None,
    typer.Option(
        help="Text file, folder or quoted glob to train a byte-level BPE tokenizer on (repeatable).",
        rich_help_panel=_VOCABULARY,
    ),
]


def _command(architecture: Architecture) -> Callable[..., None]:
    """The command of one architecture."""

    @with_flags(options=flags_of(architecture.options))
    def command(
        options: Mapping[str, Any],
        output: _Output,
        tokenizer: _Tokenizer = None,
        vocab_size: _VocabSize = None,
        train_tokenizer: _TrainTokenizer = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, write nothing.")] = False,
        force: Annotated[bool, typer.Option("--force", help="Replace an earlier output of this tool.")] = False,
        as_json: console.JsonOption = False,
        verbose: console.VerboseOption = False,
        quiet: console.QuietOption = False,
    ) -> None:
        vocabulary = {"tokenizer": tokenizer, "vocab_size": vocab_size, "train_tokenizer": train_tokenizer or ()}
        if dry_run:
            _show_plan(architecture.name, options, vocabulary, output, force=force, as_json=as_json)
        else:
            _make(architecture.name, options, vocabulary, output, force=force, as_json=as_json, quiet=quiet)

    return command


for _name, _architecture in ARCHITECTURES.items():
    _help = f"Make {_architecture.summary}."
    app.command(_name, cls=CommandHelp, help=_help)(_command(_architecture))


def _show_plan(
    name: str, options: Mapping[str, Any], vocabulary: Mapping[str, Any], output: Path, *, force: bool, as_json: bool
) -> None:
    from surgery.checkpoint import check_output
    from surgery.checkpoint.disk import check_writable
    from surgery.models import plan_new

    plan = plan_new(name, options, **vocabulary)
    check_writable(check_output(output, force=force, source=vocabulary["tokenizer"]).parent)
    if as_json:
        console.emit("new-plan", {"output": output.as_posix(), **plan.to_dict()})
    else:
        _print(plan, output)
        console.next_run()


def _make(
    name: str,
    options: Mapping[str, Any],
    vocabulary: Mapping[str, Any],
    output: Path,
    *,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from surgery.models import new

    console.silence_transformers()
    with console.progress() as bar:
        bar.add_task("making the tokenizer and random weights", total=None, rate="")
        made = new(name, output, **vocabulary, force=force, **options)
    if as_json:
        console.emit("new", made.to_dict())
        return
    if not quiet:
        _print(made.plan, made.output)
    console.say(f"wrote {console.near(str(made.output))}")
    recipe = ("surgery", "finetune", f"{name}-pretrain", "--set", f"model={output}")
    texts = vocabulary["train_tokenizer"]
    known = f"[{', '.join(texts)}]" if len(texts) > 1 else texts[0] if texts else texts_here()
    given = [f"data.text={known}", f"data.sequence_length={made.plan.options['length']}", *_split(known, texts)]
    console.next_step(*recipe, *(word for one in (*given, f"output={output}-trained") for word in ("--set", one)))


def _split(known: str, texts: Sequence[str]) -> list[str]:
    """The recipe holds out a small share of a stream of documents, which has none of it if the documents are few."""
    from surgery.data.documents import match_files

    if known == TEXTS or sum(len(match_files(one)) for one in texts or [known]) >= _MANY:
        return []
    return ["data.streaming=false", "data.held_out=0.1"]


def _print(plan: NewPlan, output: Path) -> None:
    rows = {
        "output": f"{console.near(str(output))} ({plan.architecture})",
        "vocabulary": plan.vocabulary,
        **plan.sizes,
        "parameters": f"{plan.parameters:,}, random with seed {plan.options['seed']}",
    }
    console.listing("Plan", list(rows.items()))
