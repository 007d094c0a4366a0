"""The options of each operation, as a user gives them: validated, and filled in from a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from surgery.errors import CheckpointError, UsageError
from surgery.operations import OPERATIONS, OperationOptions
from surgery.operations.base import LayerWord
from surgery.operations.calibration_record import CalibrationRecord
from surgery.words import nearest

if TYPE_CHECKING:
    from pydantic import ValidationError


def named_by_number(given: Mapping[str, Any] | OperationOptions) -> bool:
    """Whether the layers are given as numbers and not as a word."""
    layers = given.get("layers", "full") if isinstance(given, Mapping) else given.layers
    return layers not in get_args(LayerWord)


def fill_from_calibration(
    operations: Sequence[Mapping[str, Any] | OperationOptions], calibration: CalibrationRecord
) -> list[Mapping[str, Any] | OperationOptions]:
    """The operations with the values of a calibration.

    Raises:
        UsageError: the calibrated operation is not among them, or its options contradict the calibration.
    """
    from pydantic import ValidationError

    name = calibration.operation
    found: list[Mapping[str, Any] | OperationOptions] = []
    for given in operations:
        options = dict(given) if isinstance(given, Mapping) else given.model_dump(exclude_unset=True)
        if options.get("name") != name:
            found.append(given)
            continue
        try:
            found.append(OPERATIONS[name].calibrated(options, calibration))
        except ValidationError as error:
            raise UsageError(f"{name}: {option_errors(error)}") from error
    if found == list(operations):
        raise UsageError(f"a calibration was given, but {name} is not among the operations")
    return found


def unknown_operation(name: str) -> UsageError:
    """The error for a name that no operation has."""
    close = nearest(name, OPERATIONS)
    meant = f"Did you mean {close}? " if close else ""
    return UsageError(f"unknown operation {name!r}", hint=f"{meant}Known: {', '.join(OPERATIONS)}.")


def recorded_operations(name: str, operations: Sequence[Mapping[str, Any]]) -> list[OperationOptions]:
    """The options of the operations in the config.json of a converted checkpoint.

    Args:
        name: of its folder, for the message.
        operations: as config.json has them.

    Raises:
        CheckpointError: one is not valid.
    """
    try:
        return [parse_operation(options) for options in operations]
    except UsageError as error:
        raise CheckpointError(f"{name}: config.json: surgery.operations: {error.message}") from error


def parse_operation(given: Mapping[str, Any] | OperationOptions) -> OperationOptions:
    """Validate one operation's options against its schema.

    Raises:
        UsageError: unknown operation, unknown key, or a wrong value; all of them at once.
    """
    from pydantic import ValidationError

    if isinstance(given, OperationOptions):
        return given
    name = str(given.get("name"))
    if name not in OPERATIONS:
        raise unknown_operation(name)
    try:
        return OPERATIONS[name].options.model_validate(dict(given))
    except ValidationError as error:
        known = list(OPERATIONS[name].options.model_fields)
        raise UsageError(f"{name}: {option_errors(error, known)}") from error


def option_errors(error: ValidationError, known: Sequence[str] = ()) -> str:
    """All errors that pydantic found, in one line; the nearest of the ``known`` options for one that does not exist."""
    return "; ".join(_option_error(dict(problem), known) for problem in error.errors())


def _option_error(problem: dict[str, Any], known: Sequence[str]) -> str:
    """One error of pydantic in plain words: the option, its value, the reason, and the nearest valid value."""
    option = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not option:
        return message
    given = problem["input"]
    if message.startswith(repr(given)):
        return f"{option}: {message}"
    close = None
    if problem["type"] == "literal_error" and isinstance(given, str):
        choices = str(problem["ctx"]["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        close = nearest(given, choices)
    elif problem["type"] == "extra_forbidden":
        close = nearest(option, known)
        return f"{option}: unknown option" + (f"; did you mean {close!r}?" if close else "")
    return f"{option} {given!r}: {message}" + (f"; did you mean {close!r}?" if close else "")
