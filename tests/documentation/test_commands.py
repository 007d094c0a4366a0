"""Commands, options and recipe keys that the pages name exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from docs.generate import commands
from surgery.commands.console import _ParserError
from surgery.recovery import Recipe
from surgery.schemas.unions import models_in
from tests.documentation.links import ROOT, module_file, pages

_PAGES = [page for page in pages() if page.parent.name != "reference"]
_GENERAL = {"--help", "--version", "--install-completion", "--show-completion"}


@cache
def known() -> dict[str, set[str]]:
    """Words of each command -> its options."""
    return {
        " ".join(path): {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        for path, command, _ in commands()
    }


def blocks(text: str) -> Iterator[str]:
    """Lines of code and code spans."""
    yield from code_lines(text)
    yield from (" ".join(span.split()) for span in re.findall(r"`(surgery [a-z][^`]*)`", text))


def code_lines(text: str) -> list[str]:
    """Lines of code, continued lines joined."""
    code = re.sub(r"\\\n\s*", " ", text)
    return re.findall(r"^(?:\$|    )?\s*(surgery [a-z].*)$", code, re.MULTILINE)


def words_of(line: str) -> list[str]:
    """The words of a command line; the explanation after two blanks is left out."""
    line = re.split(r"\s{3,}|#|;|\|", line.replace("...", ""))[0]
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def split(words: list[str]) -> tuple[str | None, list[str]]:
    """The name of the command, and the words after it."""
    for length in (3, 2):
        if (name := " ".join(words[:length])) in known():
            return name, words[length:]
    return None, words


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_their_options_exist(page: Any) -> None:
    groups = {" ".join(name.split()[:2]) for name in known()}
    for line in blocks(page.read_text(encoding="utf-8")):
        words = words_of(line)
        name, rest = split(words)
        if name is None:
            assert " ".join(words[:2]) in groups or words[1].startswith("-") or words == ["surgery"], line
            continue
        options = {word.partition("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)}
        assert options <= known()[name] | _GENERAL, line


@cache
def parsers() -> dict[str, Any]:
    return {" ".join(path): command for path, command, _ in commands()}


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_parser_takes_every_command(page: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Values too: a choice that does not exist, a number out of range, an argument that is missing or left over."""
    for line in code_lines(page.read_text(encoding="utf-8")):
        name, rest = split(words_of(line))
        if name is not None and rest and "..." not in line and not any(word.startswith("[") for word in rest):
            parsed(name, rest, line)


def parsed(name: str, rest: list[str], line: str) -> None:
    try:
        parsers()[name].make_context(name, list(rest))
    except typer.Exit:
        assert {"--help", "-h"} & set(rest), line
    except _ParserError as error:
        pytest.fail(f"{line}: {error.format_message()}")


@pytest.mark.parametrize("line", ["convert --to ssmax", "verify a b", "verify a --length x", "verify a --length 3"])
def test_a_command_that_cannot_run_is_found(line: str) -> None:
    name, *rest = line.split()
    with pytest.raises(pytest.fail.Exception):
        parsed(f"surgery {name}", rest, line)


def test_the_check_finds_what_does_not_exist() -> None:
    (line,) = blocks("    surgery convert --to ssmax MODEL \\\n        --turbo 3     a remark --with an option")
    name, rest = split(words_of(line))
    assert name == "surgery convert" and "--turbo" in rest and "--with" not in rest
    assert "--turbo" not in known()[name]


def test_options_in_code_spans_exist() -> None:
    every = set().union(*known().values(), _GENERAL)
    for folder in ("guide", "."):
        for page in (ROOT / "docs" / folder).glob("*.md"):
            for span in re.findall(r"`(--[a-z-]+)[^`]*`", page.read_text(encoding="utf-8")):
                assert span in every, f"{page.name}: {span}"


def test_options_of_benchmarks_exist() -> None:
    for page in _PAGES:
        text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
        for name, rest in re.findall(r"python -m bench\.([\w.]*\w)(.*)", text):
            # Commands of a folder share the arguments of its file `runs`.
            shared = "papers.runs" if name.startswith("papers.") else "harness"
            files = (module_file(f"bench.{file}") for file in (name, shared))
            source = "".join(file.read_text(encoding="utf-8") for file in files)
            for option in re.findall(r"(?<=\s)--[a-z-]+", rest.partition("`")[0]):
                assert f'"{option}"' in source, f"{page.name}: bench.{name} {option}"


def has_key(model: type[BaseModel], path: list[str]) -> bool:
    """Whether a dotted key exists below a schema, in any member of its unions."""
    if path[0].isdigit():
        return has_key(model, path[1:])
    field = model.model_fields.get(path[0])
    if field is None:
        return False
    rest = [part for part in path[1:] if not part.isdigit()]
    return not rest or any(has_key(member, rest) for member in models_in(field.annotation))


def test_recipe_keys_exist() -> None:
    for page in _PAGES:
        text = page.read_text(encoding="utf-8")
        for key in re.findall(r"--set ['\"]?([\w.]+)=", text):
            assert has_key(Recipe, key.split(".")), f"{page.name}: {key}"
    assert not has_key(Recipe, ["train", "ranks"]) and has_key(Recipe, ["stages", "0", "budget", "steps"])
