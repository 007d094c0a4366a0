"""docs/reference/ equals the output of the generator, which shows every kind of key and option."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from docs.generate import FOLDER, commands, pages
from surgery.errors import ExitCode
from surgery.schemas.reference import reference


class Word:
    """Metadata with the behaviour without a value, as options of an operation have it."""

    absent = "the trained length"


class Limits(BaseModel):
    """Limits of one item."""

    time: float | None = Field(default=None, gt=0, lt=5, description="Seconds")


class Small(BaseModel):
    """A small part.

    Attributes:
        size: how large ``it`` is,
            in tokens.
    """

    kind: Literal["small"]
    size: int = 3


class Large(BaseModel):
    """A large part."""

    kind: Literal["large"]
    limits: Limits | None = None
    more: list[Small] = []


class Root(BaseModel):
    """A file."""

    parts: list[Annotated[Small | Large, Field(discriminator="kind")]] = Field(min_length=1, description="The parts.")
    limits: Limits = Limits()
    length: Annotated[int | None, Word()] = Field(default=None, ge=2, description="N | the length.")
    values: dict[str, float] = {}


def test_every_kind_of_key_is_shown() -> None:
    text = reference(Root)
    for line in (
        "| `parts` | list of [section](#parts) | required | The parts. |",
        "| `limits` | [section](#limits) |  | Limits of one item. |",
        "| `length` | integer ≥ 2 | the trained length | N \\| the length. |",
        "| `values` | number by name | `{}` |  |",
        "## `parts`",
        "### `kind: small`",
        "| `size` | integer | `3` | how large `it` is, in tokens. |",
        "| `limits` | [`limits`](#limits) |  | Limits of one item. |",
        "| `time` | number > 0, < 5 |  | Seconds. |",
    ):
        assert line in text.splitlines(), line
    assert "`kind` |" not in text and "Attributes" not in text


def test_models_of_another_page_are_links() -> None:
    text = reference(Root, elsewhere={Limits: "[limits](limits.md)"})
    assert "| `limits` | [limits](limits.md) |" in text and "## `limits`" not in text


def test_every_command_option_and_exit_code_is_shown() -> None:
    made = pages()
    for path, command, _ in commands():
        section = made["commands.md"].partition(f"## {' '.join(path)}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            if not parameter.hidden:
                name = parameter.opts[-1] if parameter.param_type_name == "option" else parameter.name
                assert name in section or (parameter.metavar or "") in section, (path, name)
    for code in ExitCode:
        assert f"| {code.value} | {code.meaning} |" in made["exit-codes.md"]


@pytest.mark.parametrize("name", sorted({path.name for path in FOLDER.glob("*.md")}))
def test_the_reference_is_current(name: str, generated: dict[str, str]) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == generated[name], "run: make reference"


@pytest.fixture(scope="module")
def generated() -> dict[str, Any]:
    return pages()


def test_no_page_is_missing(generated: dict[str, str]) -> None:
    assert {path.name for path in FOLDER.glob("*.md")} == set(generated)
