"""Flags of a command that are built from the fields of an options model, so that name, help and default stand once.

    @app.command()
    @with_flags(run=flags_of(RunOptions, "device"))
    def verify(model: ..., run: Mapping[str, Any]) -> None: ...

``run`` then holds the flags that were given, by the name of their field, as the model takes them.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from surgery.commands import console
from surgery.errors import UsageError
from surgery.flag import Flag

if TYPE_CHECKING:
    from pydantic import BaseModel

    from surgery.loading import RunOptions

RUNNING = "Running the model"


@dataclass(frozen=True)
class ModelFlag:
    """One field of a model as a flag.

    Attributes:
        field: name of the field.
        names: spellings of the flag.
        kind: type of one value at the command line; ``dict`` is name=number.
        help: the description of the field.
        default: the default as the help text shows it.
        second: another field, which takes the second of two numbers.
        addressed: the flag may be given several times, each time for one operation: ``ssmax=0-3``.
        words: values that the schema names, which a shell offers.
        panel: heading above the flag in the help text.
    """

    field: str
    names: tuple[str, ...]
    kind: type
    help: str
    default: str | None
    second: str | None = None
    addressed: bool = False
    words: tuple[str, ...] = ()
    panel: str | None = None

    @property
    def repeated(self) -> bool:
        """Whether it may be given several times."""
        return self.addressed or self.kind is dict

    def parameter(self) -> inspect.Parameter:
        """The parameter that Typer makes the flag from. Its value is None, or False, where the flag was not given."""
        annotation: Any = list[str] if self.repeated else self.kind
        option = typer.Option(
            *self.names,
            help=self.help,
            show_default=self.default or False,
            rich_help_panel=self.panel,
            autocompletion=self._completion if self.words else None,
            metavar=self._metavar(),
        )
        is_switch = self.kind is bool
        return inspect.Parameter(
            self.field,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if is_switch else None,
            annotation=Annotated[bool if is_switch else annotation | None, option],
        )

    def values(self, given: Any) -> dict[str, Any]:
        """Fields and values from the result of the parser.

        Raises:
            UsageError: the text does not have the form of the flag.
        """
        if given is None or given is False:
            return {}
        if self.kind is dict:
            return {self.field: _assignments(self.names[0], given)}
        if self.second is None:
            return {self.field: given}
        parts = [part.strip() for part in given.split(",")]
        if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
            raise UsageError(
                f"{self.names[0]} {given!r}: needs two numbers with a comma between",
                hint=f"For example: {self.names[0]} {self.default}",
            )
        return {self.field: int(parts[0]), self.second: int(parts[1])}

    def _metavar(self) -> str | None:
        """The words that it takes, where its help text does not explain them one by one."""
        if self.kind is dict:
            return "NAME=VALUE"
        explained = all(word in self.help for word in self.words)
        return None if explained else f"<{'|'.join(self.words)}>"

    def _completion(self, incomplete: str) -> list[str]:
        return [word for word in self.words if word.startswith(incomplete)]


Flags = Mapping[str, ModelFlag]


def spelled(field: str) -> str:
    """The flag of a field without a spelling of its own: ``--beta-fast`` of ``beta_fast``."""
    return "--" + field.replace("_", "-")


def flags_of(model: type[BaseModel], *only: str, panel: str | None = None) -> dict[str, ModelFlag]:
    """The flags of a model's fields by field name, all of them or some."""
    found = {}
    for name, info in model.model_fields.items():
        flag = next((item for item in info.metadata if isinstance(item, Flag)), Flag())
        if flag.hidden or name == "name" or (only and name not in only):
            continue
        options = list(_options(info.annotation))
        kind = next((option for option in options if option in (bool, int, float, dict)), str)
        found[name] = ModelFlag(
            field=name,
            names=flag.names or (spelled(name),),
            kind=str if flag.second else kind,
            help=str(info.description),
            default=flag.absent or _shown(info.default),
            second=flag.second,
            words=tuple(word for option in options for word in _words(option)),
            panel=panel,
        )
    return found


def run_flags(*only: str) -> dict[str, ModelFlag]:
    """The flags of how a model is run: ``device``, ``dtype``, ``batch_size``, ``attn_implementation``."""
    from surgery.loading import RunOptions

    return flags_of(RunOptions, *only, panel=RUNNING)


def run_options(given: Mapping[str, Any]) -> RunOptions:
    """How the model is run, from the flags of :func:`run_flags`.

    Raises:
        UsageError: a value is not possible.
    """
    from pydantic import ValidationError

    from surgery.loading import RunOptions

    try:
        return RunOptions(**given)
    except ValidationError as error:
        from surgery.commands.usage_errors import in_words

        first = error.errors()[0]
        raise UsageError(f"{spelled(str(first['loc'][0]))} {first['input']}: {in_words(first['msg'])}") from error


def with_flags(**groups: Flags) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add flags to a command; each group arrives as one argument, a mapping of the fields that were given."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(command).parameters.items():
            added = [flag.parameter() for flag in groups[name].values()] if name in groups else []
            own = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
            parameters += added if name in groups else [own]

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            console.setup(verbose=given.get("verbose", False), quiet=given.get("quiet", False))
            for group, flags in groups.items():
                values: dict[str, Any] = {}
                for flag in flags.values():
                    values |= flag.values(given.pop(flag.field))
                given[group] = values
            command(**given)

        # Typer builds its parameters from these two.
        vars(wrapper)["__signature__"] = inspect.Signature(parameters)
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate


def _options(annotation: Any) -> Iterable[Any]:
    """The types that a field can have, without None and without constraints."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _options(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for option in get_args(annotation):
            yield from _options(option)
    elif origin is dict:
        yield dict
    elif annotation is not types.NoneType:
        yield annotation


def _shown(default: Any) -> str | None:
    if default is None or isinstance(default, bool):
        return None
    return f"{default:g}" if isinstance(default, float) else str(default)


def _words(option: Any) -> tuple[str, ...]:
    return get_args(option) if get_origin(option) is Literal else ()


def _assignments(flag: str, pairs: list[str]) -> dict[str, float]:
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            values[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise UsageError(
                f"{flag} {pair!r}: not of the form name=number", hint=f"Pass for example {flag} scale=0.1."
            )
    return values
