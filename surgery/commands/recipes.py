"""``surgery recipes``: list, show, copy and check recipes; their schema and reference."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from surgery.colours import LABEL
from surgery.commands import completion, console
from surgery.commands.help import SETTINGS, CommandHelp, GroupHelp
from surgery.errors import UsageError

app = typer.Typer(
    cls=GroupHelp, add_completion=False, help="List, show, copy and check recipes.", no_args_is_help=True, **SETTINGS
)

_NameArgument = Annotated[
    str, typer.Argument(help="Name from `surgery recipes list`.", autocompletion=completion.recipes)
]


# The model that a recipe starts from, by its placeholder, in the order in which people come to need it.
_SUBJECTS = {
    "converted": "For a model that `surgery convert` made",
    "source": "For a source model: the recipe converts it first",
    "new": "For a model that `surgery new` made",
}


def _subject(recipe: str) -> str | None:
    """The kind of model in the line ``model: path/to/KIND-model`` of a shipped recipe."""
    found = re.search(r"^model: path/to/(\w+)-model$", recipe, re.MULTILINE)
    return found[1] if found else None


@app.command("list", cls=CommandHelp)
def list_recipes(json_: console.JsonOption = False) -> None:
    """List the recipes that surgery ships."""
    from surgery.schemas.shipped import shipped_files

    found = shipped_files("recipes")
    subjects = {recipe.name: _subject(recipe.text) for recipe in found}
    if json_:
        listed = [{"name": recipe.name, "model": subjects[recipe.name], "summary": recipe.summary} for recipe in found]
        console.emit("recipes", {"recipes": listed})
        return
    width = max(map(len, subjects))
    for subject, title in _SUBJECTS.items():
        console.out.print(title, style=LABEL)
        table = Table(show_header=False, box=None)
        table.add_column(width=width)
        for recipe in found:
            if subjects[recipe.name] == subject:
                table.add_row(recipe.name, recipe.summary)
        console.out.print(table)
    console.say("`surgery recipes show NAME` prints a recipe, `surgery finetune NAME` runs it.")


@app.command(cls=CommandHelp)
def show(name: _NameArgument, json_: console.JsonOption = False) -> None:
    """Print a recipe."""
    from surgery.schemas.shipped import shipped_file

    recipe = shipped_file("recipes", name)
    if json_:
        console.emit("recipe", {"name": recipe.name, "summary": recipe.summary, "text": recipe.text})
    else:
        sys.stdout.write(recipe.text)


@app.command(cls=CommandHelp)
def copy(
    name: _NameArgument,
    path: Annotated[Path | None, typer.Argument(help="New file, or folder; by default NAME.yaml here.")] = None,
    json_: console.JsonOption = False,
) -> None:
    """Copy a recipe to a new file."""
    from surgery.schemas.shipped import shipped_file

    recipe = shipped_file("recipes", name)
    target = path or Path(f"{recipe.name}.yaml")
    if target.is_dir():
        if (target / "config.json").is_file():
            raise UsageError(f"{target} is a model folder", hint="Pass another folder or a file name.")
        target = target / f"{recipe.name}.yaml"
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(recipe.text)
    except FileExistsError as error:
        raise UsageError(f"{target} already exists", hint="Pass another path.") from error
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from error
    if json_:
        console.emit("recipe-copy", {"name": recipe.name, "file": target.as_posix()})
        return
    console.err.print(f"{target} written", highlight=False, markup=False)


@app.command(cls=CommandHelp)
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from surgery.recovery import json_schema

    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")


@app.command(cls=CommandHelp)
def reference() -> None:
    """Print the meaning of every key of a recipe, as Markdown."""
    from surgery.recovery import Recipe
    from surgery.schemas.reference import reference as markdown

    sys.stdout.write(markdown(Recipe))


@app.command(cls=CommandHelp)
def check(
    file: Annotated[Path, typer.Argument(help="YAML file, or name of a shipped recipe.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")] = None,
    json_: console.JsonOption = False,
) -> None:
    """Check a recipe; print every fault with its line and the nearest key."""
    from surgery.recovery import RecipeError, environment_overrides, placeholders, read_recipe

    try:
        recipe = read_recipe(file, [*environment_overrides(), *(set_ or [])])
    except RecipeError as error:
        if json_:
            problems = [
                {"path": problem.path, "line": problem.line, "message": problem.message} for problem in error.problems
            ]
            console.emit("recipe-check", {"valid": False, "problems": problems})
        raise
    unset = placeholders(recipe)
    if json_:
        content = {"valid": True, "problems": [], "placeholders": unset, "recipe": recipe.model_dump(mode="json")}
        console.emit("recipe-check", content)
        return
    console.out.print(f"{file}: valid", highlight=False, markup=False)
    if unset:
        console.err.print(
            f"note: {', '.join(unset)}: still a placeholder (path/to/...). Set a value in a copy (`surgery recipes "
            "copy`) or with --set.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
