"""``surgery push``: an output, with its card, to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from surgery.commands import console
from surgery.commands.help import CommandHelp, command_app

if TYPE_CHECKING:
    from surgery.checkpoint.hub_upload import PushPlan

PushOption = Annotated[
    str | None,
    typer.Option(
        "--push",
        metavar="NAME/MODEL",
        help="Then upload the output with its card to this hub repository, private if it is new.",
        rich_help_panel="Writing",
    ),
]


app = command_app()


@app.command(cls=CommandHelp)
def push(
    model: Annotated[Path, typer.Argument(help="Folder that convert, finetune or merge wrote.")],
    repository: Annotated[str, typer.Argument(metavar="NAME/MODEL", help="Hub id to upload to.")],
    public: Annotated[bool, typer.Option("--public", help="For everybody to see, where it is new.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier output there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the folder, the account and the repository; upload nothing.")
    ] = False,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Upload an output to the Hugging Face hub.

    Uploads the folder with its card in one commit, private unless --public is given. The account is that of
    HF_TOKEN or of `hf auth login`. An interrupted upload continues when the command is repeated.
    """
    from surgery.checkpoint.hub_upload import plan_push
    from surgery.checkpoint.hub_upload import push as push_folder

    console.setup(verbose=verbose, quiet=quiet)
    if dry_run:
        _show_plan(plan_push(model, repository, private=not public, force=force), as_json=as_json)
        return
    result = push_folder(model, repository, private=not public, force=force)
    if as_json:
        console.emit("push", result.to_dict())
    else:
        print_pushed(result.url, result.private)


def _show_plan(plan: PushPlan, *, as_json: bool) -> None:
    from surgery.checkpoint import format_size

    if as_json:
        console.emit("push-plan", plan.to_dict())
        return
    where = "an earlier output is replaced" if plan.exists else f"new, {'private' if plan.private else 'public'}"
    rows = [("repository", f"{plan.repository} ({where})"), ("size", format_size(sum(plan.files.values())))]
    console.listing("Upload", [*rows, *((name, format_size(size)) for name, size in plan.files.items())])
    console.next_run()


def print_pushed(url: str, private: bool) -> None:
    """The address of an upload."""
    console.say(f"pushed to {url} ({'private' if private else 'public'})")
