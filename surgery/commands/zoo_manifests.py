"""``surgery zoo init``, ``check``, ``schema`` and ``reference``: a manifest before it is run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from surgery.commands import completion, console
from surgery.errors import UsageError
from surgery.operations import OPERATIONS
from surgery.words import counted

_DEFAULT = Path("zoo.yaml")


def init(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODELS]...", help="Folders or quoted globs; else an example.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The new manifest.")] = _DEFAULT,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            autocompletion=completion.operations,
            help="Operation on each of MODELS (repeatable).",
            show_default=next(iter(OPERATIONS)),
        ),
    ] = None,
    as_json: console.JsonOption = False,
) -> None:
    """Write a manifest to begin with."""
    from surgery.zoo.manifest import EXAMPLE, read_manifest

    if to and not models:
        raise UsageError("--to needs MODELS", hint="Name them: surgery zoo init 'models/*' --to NAME.")
    for model in models or ():
        _check_sources(model)
    text = EXAMPLE
    if models:
        content = {
            "models": [{"path": _from_manifest(model, output)} for model in models],
            "operations": [{"name": name} for name in to or [next(iter(OPERATIONS))]],
            "output": "converted",
        }
        read_manifest(content)
        text = "".join(
            f"{key}:\n" + "".join(f"  - {json.dumps(one, ensure_ascii=False)}\n" for one in value)
            if isinstance(value, list)
            else f"{key}: {value}\n"
            for key, value in content.items()
        )
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(f"{output} already exists", hint="Pass another -o.") from error
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from error
    if as_json:
        console.emit("zoo-init", {"file": output.as_posix()})
        return
    console.say(f"wrote {output}")
    console.next_step("surgery", "zoo", "check", str(output))


def _check_sources(model: str) -> None:
    """A zoo converts sources: refuse a folder, or a glob with folders, that was converted already.

    Raises:
        UsageError: there is one.
    """
    import glob

    from surgery.checkpoint.record import PLAN_NAME

    converted = sorted(
        found for found in glob.glob(str(Path(model).expanduser())) if (Path(found) / PLAN_NAME).is_file()
    )
    if converted:
        raise UsageError(
            f"{', '.join(converted[:3])}: converted already, and a zoo converts sources",
            hint="Name the sources alone, or keep converted models in a folder of their own.",
        )


def _from_manifest(model: str, manifest: Path) -> str:
    """A path as the manifest says it: relative to its own folder, unless it was given in full."""
    return model if Path(model).expanduser().is_absolute() else os.path.relpath(model, manifest.parent)


def check(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="A YAML file.")],
    as_json: console.JsonOption = False,
) -> None:
    """Check a manifest; print every fault with its line and the nearest key."""
    from surgery.zoo.manifest import ManifestError
    from surgery.zoo.zoo import open_zoo

    try:
        items = open_zoo(manifest).items
    except ManifestError as error:
        if as_json:
            problems = [
                {"path": problem.path, "line": problem.line, "message": problem.message} for problem in error.problems
            ]
            console.emit("zoo-check", {"valid": False, "problems": problems})
        raise
    if as_json:
        console.emit("zoo-check", {"valid": True, "problems": [], "items": [item.name for item in items]})
        return
    console.say(f"{manifest}: valid, {counted(len(items), 'item')}")
    console.next_step("surgery", "zoo", "plan", str(manifest))


def schema() -> None:
    """Print the JSON Schema of manifests, for editors."""
    from surgery.zoo.manifest import json_schema

    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")


def reference() -> None:
    """Print an example manifest and the meaning of every key, as Markdown."""
    from surgery.schemas.reference import reference as markdown
    from surgery.zoo.manifest import EXAMPLE, Manifest

    sys.stdout.write(f"```yaml\n{EXAMPLE}```\n\n{markdown(Manifest)}")
