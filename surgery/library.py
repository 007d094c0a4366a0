"""The exported functions as a library: errors speak of parameters, where the command line speaks of flags."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from surgery.errors import SurgeryError, UnknownKeywordError
from surgery.words import nearest

Function = TypeVar("Function", bound=Callable[..., Any])

# A flag, and the value behind it where one follows: a number, something quoted, a word in capitals, or a name before a
# colon, as in "--device foo: no device has this name".
_FLAG = re.compile(
    r"(?<![\w-])--(?P<flag>[a-z][a-z-]*)"
    r"(?: (?P<value>-?\d[\w.]*|'[^']*'|\"[^\"]*\"|[A-Z]{3,}\b|[^\s:]+(?=:)|[\w.]+=\S*[\w\]]))?"
)


# Flags of the command line whose parameter is called otherwise.
_RENAMED = {"set": "overrides", "to": "operations", "calibrate": "calibration", "o": "output"}


def as_library(function: Function) -> Function:
    """The function with errors for a caller in Python.

    A flag in an error of this package becomes the parameter: "--force" is ``force=True``, "--length 1" is ``length=1``.
    A keyword that the function does not have is a :class:`UsageError` (and a :class:`TypeError`) with the nearest one.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        _check_keywords(function.__name__, signature, keywords)
        try:
            return function(*arguments, **keywords)
        except SurgeryError as error:
            error.message = in_parameters(error.message, signature)
            if error.hint:
                error.hint = in_parameters(error.hint, signature)
            error.args = (error.message, *error.args[1:])
            raise

    return call  # type: ignore[return-value]


def _check_keywords(name: str, signature: inspect.Signature, given: Mapping[str, Any]) -> None:
    parameters = signature.parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return  # options of an operation, which are checked with it
    wrong = next((keyword for keyword in given if keyword not in parameters), None)
    if wrong is None:
        return
    # A flag whose parameter has another name; else what is spelled alike.
    same = _RENAMED.get(wrong) if _RENAMED.get(wrong) in parameters else None
    close = same or nearest(wrong, parameters)
    raise UnknownKeywordError(
        f"{name} has no parameter {wrong!r}",
        hint=(f"Did you mean {close!r}? " if close else "") + f"Its parameters are {', '.join(parameters)}.",
    )


def in_parameters(text: str, signature: inspect.Signature) -> str:
    """A message with the parameters of a function in place of the flags of its command."""
    return _FLAG.sub(lambda found: _parameter(found, signature), text)


def _parameter(found: re.Match[str], signature: inspect.Signature) -> str:
    name, value = found["flag"].replace("-", "_"), found["value"]
    if name == "set" and "overrides" in signature.parameters:
        return "overrides" if value is None else f"overrides=[{value!r}]"
    inside = ""
    if name not in signature.parameters:
        if "run" not in signature.parameters or name not in _run_fields():
            return found[0]
        inside = "RunOptions"
    if name in signature.parameters and signature.parameters[name].default is False:
        written = f"{name}=True" + (f" {value}" if value else "")
    elif value is None:
        return name
    else:
        plain = value[0] in "'\"" or value.isupper() or re.fullmatch(r"-?\d+(\.\d+)?", value)
        written = f"{name}={value if plain else repr(value)}"
    return f"run={inside}({written})" if inside else written


@functools.cache
def _run_fields() -> frozenset[str]:
    from surgery.loading import RunOptions

    return frozenset(RunOptions.model_fields)
