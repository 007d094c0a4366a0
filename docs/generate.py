"""Write docs/reference/ from the schemas and the commands; `make reference` runs it.

    python -m docs.generate [FOLDER]

Nothing in docs/reference/ is written by hand. Each page is a function in PAGES that returns Markdown.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from surgery.commands import console
from surgery.commands.app import app
from surgery.commands.help import help_record
from surgery.errors import ExitCode, SurgeryError
from surgery.evaluation import Suite
from surgery.operations import OPERATIONS
from surgery.recovery import Recipe
from surgery.schemas.reference import key_table, reference, summary
from surgery.zoo.manifest import Manifest

FOLDER = Path(__file__).parent / "reference"
_OPERATIONS_LINK = "[operation](operations.md)"


def contents() -> str:
    """The list of pages."""
    lines = [
        "# Reference",
        "",
        "`make reference` writes these pages from the schemas and the commands. Do not edit them: change the",
        "description of the option or key, then run the command again. A test compares them.",
        "",
    ]
    for name, (title, about, _) in PAGES.items():
        lines.append(f"- [{title}]({name}): {about}")
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """File name in docs/reference/ -> its text."""
    made = {name: f"# {title}\n\n{text().strip()}\n" for name, (title, _, text) in PAGES.items()}
    return {"README.md": contents(), **made}


def write(folder: Path = FOLDER) -> None:
    """Write every page, and remove pages that no longer exist."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for path in folder.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")


def _printed(*arguments: str) -> str:
    """What a command writes to stdout."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = console.run(app, list(arguments))
    if code:
        raise SystemExit(f"surgery {' '.join(arguments)} ended with exit code {code}")
    return out.getvalue()


# Commands


def _commands() -> str:
    leaves = commands()
    lines = []
    for path, command, _ in leaves:
        name = " ".join(path)
        lines.append(f"- [`{name}`](#{name.replace(' ', '-')}): {_first_sentence(command.help or '')}")
    parts = ["\n".join(_command(path, command, context)) for path, command, context in leaves]
    return "\n\n".join(["Every command takes `-h` and `--help`.", "\n".join(lines), *parts])


def commands() -> list[tuple[tuple[str, ...], Any, Any]]:
    """Each command: its words, the parsed command, and its context."""
    root = typer.main.get_command(app)
    return list(_leaves(root, root.make_context("surgery", [], resilient_parsing=True)))


def _leaves(
    command: Any, context: Any, path: tuple[str, ...] = ("surgery",)
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Each command without subcommands: its words, the command, and its context."""
    if not hasattr(command, "list_commands"):
        yield path, command, context
        return
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        if not inner.hidden:
            inside = type(context)(inner, info_name=name, parent=context)
            yield from _leaves(inner, inside, (*path, name))


def _command(path: tuple[str, ...], command: Any, context: Any) -> Iterator[str]:
    yield f"## {' '.join(path)}"
    yield ""
    yield _prose(command.help or "")
    yield ""
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    words = [*path, *map(_usage, arguments), "[OPTIONS]"]
    yield f"    {' '.join(words)}"
    if arguments:
        yield from _table("argument", arguments, context)
    panels: dict[str | None, list[Any]] = {None: []}
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            panels.setdefault(getattr(parameter, "rich_help_panel", None), []).append(parameter)
    for panel, options in panels.items():
        if options and panel is not None:
            yield ""
            yield f"{panel}:"
        if options:
            yield from _table("option", options, context)


def _usage(argument: Any) -> str:
    word = (argument.metavar or argument.name).upper() + ("..." if argument.nargs != 1 else "")
    return word if argument.required else f"[{word}]"


def _table(kind: str, parameters: list[Any], context: Any) -> Iterator[str]:
    yield from ("", f"| {kind} | default | meaning |", "|---|---|---|")
    for parameter in parameters:
        names, text = help_record(parameter, context) or (parameter.name, "")
        text, default = _without_default(_prose(text))
        names = re.sub(r"<list\[(\w+)\]>", r"<\1> ...", names)
        cells = (f"`{names}`", default, text)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _without_default(text: str) -> tuple[str, str]:
    """The help of a parameter without its last bracket, and the default that the bracket names."""
    before, bracket, inside = text.rpartition("  [")
    if not bracket or not inside.endswith("]"):
        return text, ""
    default, notes = [], []
    for note in inside[:-1].split("; "):
        if note == "required":
            default.append(note)
        elif note.startswith(("env var: ", "at least ")):
            notes.append(note)
        else:
            default.append(note.removeprefix("default: ").removeprefix("(").removesuffix(")"))
    return f"{before} ({'; '.join(notes)})" if notes else before, "; ".join(default)


def _prose(text: str) -> str:
    return text.replace("``", "`").strip()


def _first_sentence(text: str) -> str:
    return " ".join(_prose(text).partition("\n\n")[0].split())


# Schemas


def _operations() -> str:
    parts = [
        "An operation changes attention. Its options are the same in three places: flags of `surgery convert`, an item",
        "of `operations` in a recipe or a manifest (`{name: ssmax, form: bias}`), and the block `surgery` in the",
        "config.json of a converted checkpoint.",
    ]
    text = "\n".join(parts)
    for name, operation in OPERATIONS.items():
        text += (
            f"\n\n## {name}\n\n{operation.summary}\n\n{summary(operation.options)}\n\n{key_table(operation.options)}"
        )
    return text


def _options_elsewhere() -> Mapping[Any, str]:
    return {operation.options: _OPERATIONS_LINK for operation in OPERATIONS.values()}


def _recipe() -> str:
    head = "A recipe for `surgery finetune`. `surgery recipes check FILE` names every fault in one."
    return f"{head}\n\n{reference(Recipe, elsewhere=_options_elsewhere())}"


def _suite() -> str:
    head = "A suite for `surgery evaluate --suite FILE`. Each item of `parts` is one measure; `kind` names it."
    return f"{head}\n\n{reference(Suite)}"


def _manifest() -> str:
    head = "A manifest for `surgery zoo`. Paths are relative to the manifest's folder."
    return f"{head}\n\n{reference(Manifest, elsewhere=_options_elsewhere())}"


# Families and exit codes


def _families() -> str:
    return _printed("families", "--markdown").removeprefix("# Families\n")


def _exit_codes() -> str:
    _load_all_errors()
    lines = ["| code | of every command | exceptions in Python |", "|---|---|---|"]
    for code in ExitCode:
        raised = ", ".join(f"`{error.__name__}`" for error in _errors(SurgeryError) if error.exit_code == code)
        lines.append(f"| {code.value} | {code.meaning} | {raised} |")
    lines += [
        "",
        "With `--json` an error is a document on stdout with the code, unless the command has printed its own.",
    ]
    return "\n".join(lines)


def _load_all_errors() -> None:
    """Import every module that defines an error: which of them are loaded already depends on what ran before."""
    root = Path(__file__).parents[1]
    for path in sorted((root / "surgery").rglob("*.py")):
        if re.search(r"^class \w+Error\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            import_module(".".join(path.relative_to(root).with_suffix("").parts))


def _errors(root: type[SurgeryError]) -> list[type[SurgeryError]]:
    inner = [error for child in root.__subclasses__() for error in _errors(child)]
    return sorted([root, *inner], key=lambda error: error.__name__)


PAGES: dict[str, tuple[str, str, Callable[[], str]]] = {
    "commands.md": ("Commands", "every command, argument and option", _commands),
    "operations.md": ("Operations", "the options of ssmax, screening and rope", _operations),
    "recipe.md": ("Recipe", "every key of a recipe", _recipe),
    "suite.md": ("Suite", "every key of a suite", _suite),
    "manifest.md": ("Manifest of a zoo", "every key of a manifest", _manifest),
    "families.md": ("Families", "which operations apply to each model family, and what is refused", _families),
    "exit-codes.md": ("Exit codes", "what each exit code means", _exit_codes),
}

if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
