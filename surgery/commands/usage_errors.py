"""Errors of the parser in the words of all other errors: what was given, what is wrong with it, what to run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from surgery.errors import UsageError
from surgery.words import nearest

# What pydantic says of a value, with which Typer reads numbers, and what people say.
_WORDS = (
    (re.compile(r"Input should be a valid integer.*"), "must be a whole number"),
    (re.compile(r"Input should be a valid number.*"), "must be a number"),
    (re.compile(r"Input should be greater than or equal to (.*)"), r"must be at least \1"),
    (re.compile(r"Input should be greater than (.*)"), r"must be above \1"),
    (re.compile(r"Input should be less than or equal to (.*)"), r"must be at most \1"),
    (re.compile(r"Input should be (.* or .*)"), r"must be \1"),
    (re.compile(r".* is not a valid (?:int|integer)(?: range)?\.?"), "must be a whole number"),
    (re.compile(r".* is not a valid float(?: range)?\.?"), "must be a number"),
    (re.compile(r".* is not in the range x>=(\S+?)\.?"), r"must be at least \1"),
)


def usage_error(error: Any, given: Sequence[str]) -> UsageError:
    """An error of this package from one of the parser.

    Args:
        error: of Typer, or of the installed click.
        given: the words of the command line.
    """
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else _command_of(given)
    more = f"`{command} -h` shows the options."
    kind = type(error).__name__
    if kind == "MissingParameter":
        return UsageError(f"{named(error.param)} is missing", hint=f"Run for example `{pattern(context)}`; {more}")
    if kind == "NoSuchOption":
        close = _nearest(error.option_name, _options(context))
        return UsageError(f"{error.option_name}: {command} has no such option", hint=_did_you_mean(close) + more)
    if kind == "BadOptionUsage":
        return UsageError(f"{error.option_name} needs a value", hint=more)
    if kind == "BadParameter":
        name = named(error.param)
        value = _value(error.param, given)
        said = f"{name} {value}: " if value else f"{name}: "
        return UsageError(said + in_words(error.message), hint=more)
    message = str(error.message)
    if found := re.match(r"No such command '(.*?)'", message):
        names = list(context.command.commands) if context is not None else []
        close = _nearest(found[1], names)
        hint = _did_you_mean(close and f"`{command} {close}`") + f"`{command} -h` lists the commands."
        return UsageError(f"{found[1]!r}: no such command", hint=hint)
    if found := re.search(r"unexpected extra arguments? ?(?:\(s\) )?\((.*)\)", message):
        return UsageError(
            f"{found[1]}: one word too many", hint=f"The form is `{pattern(context)}`. Quote a word with spaces; {more}"
        )
    return UsageError(_lower(message), hint=more)


def _command_of(given: Sequence[str]) -> str:
    """The command that was called, from the words before the first option."""
    words: list[str] = []
    command: Any = app_command()
    for word in given:
        if word not in getattr(command, "commands", {}):
            break
        words.append(word)
        command = command.commands[word]
    return " ".join(["surgery", *words])


def app_command() -> Any:
    """The command of all commands."""
    import typer

    from surgery.commands.app import app

    return typer.main.get_command(app)


def pattern(context: Any) -> str:
    """The command with its arguments and required options: ``surgery verify MODEL``."""
    words = [context.command_path]
    for parameter in context.command.get_params(context):
        if parameter.param_type_name == "argument":
            words.append(named(parameter))
        elif parameter.required:
            value = parameter.metavar or parameter.opts[0].lstrip("-").upper().replace("-", "_")
            words += [named(parameter), value]
    return " ".join(words)


def named(parameter: Any) -> str:
    """A parameter as it is written: ``--length``, and MODEL for an argument."""
    if parameter is None:
        return "a value"
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name).upper().replace("_", "-").rstrip(".")
    return max(parameter.opts, key=len)


def _options(context: Any) -> list[str]:
    parameters = context.command.get_params(context) if context is not None else []
    return [name for one in parameters if one.param_type_name == "option" for name in (*one.opts, *one.secondary_opts)]


def _nearest(word: str, names: Iterable[str]) -> str | None:
    """The nearest name; one letter after a hyphen is like every other."""
    return None if re.fullmatch("-.", word) else nearest(word, [name for name in names if not re.fullmatch("-.", name)])


def _did_you_mean(close: str | None) -> str:
    return f"Did you mean {close}? " if close else ""


def _value(parameter: Any, given: Sequence[str]) -> str | None:
    """The value of an option as it was typed."""
    if parameter is None or parameter.param_type_name == "argument":
        return None
    for number, word in enumerate(given):
        name, equals, value = word.partition("=")
        if name in parameter.opts:
            return value if equals else next(iter(given[number + 1 : number + 2]), None)
    return None


def in_words(message: str) -> str:
    """What the parser or pydantic says of a value, in plain words."""
    for form, words in _WORDS:
        if form.fullmatch(message):
            return form.sub(words, message)
    return _lower(message)


def _lower(message: str) -> str:
    return (message[:1].lower() + message[1:]).rstrip(".")
