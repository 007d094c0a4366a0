"""The flags of `surgery convert` that come from the operations, and the operation of each value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from surgery.commands.flags import RUNNING, ModelFlag, flags_of, spelled
from surgery.commands.help import CommandHelp, write_sections
from surgery.conversion.options import unknown_operation
from surgery.errors import UsageError
from surgery.operations import OPERATIONS

if TYPE_CHECKING:
    from pydantic import BaseModel

CALIBRATION = "Calibration"


class OperationHelp(CommandHelp):
    """Help with the options of the operations that ``--to`` names, and of no others."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember the chosen operations: the help option is handled before all others."""
        ctx.meta[__name__] = chosen_operations(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The general options, then those of the chosen operations."""
        chosen = ctx.meta.get(__name__, ())
        own = {**operation_flags(chosen), **calibration_flags(chosen)}
        calibrates = any(OPERATIONS[name].calibrates for name in chosen)
        hidden = {*operation_flags(), *calibration_flags()} - set(own)
        shown: list[Any] = []
        parameters: list[Any] = list(self.get_params(ctx))
        for parameter in parameters:
            panel = getattr(parameter, "rich_help_panel", None)
            if parameter.name in hidden or (panel in (CALIBRATION, RUNNING) and not calibrates):
                continue
            if flag := own.get(parameter.name):
                parameter.help, parameter.show_default = flag.help, flag.default or False
                parameter.rich_help_panel = flag.panel
            shown.append(parameter)
        write_sections(shown, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """How to see the options of an operation."""
        if not ctx.meta.get(__name__):
            with formatter.section("Operations; `surgery convert --to NAME --help` shows the options of one"):
                formatter.write_dl([(name, operation.summary) for name, operation in OPERATIONS.items()])


def chosen_operations(arguments: Sequence[str]) -> tuple[str, ...]:
    """The operations that ``--to`` names, in order; unknown names are left to the parser."""
    values = [value for flag, value in pairwise(arguments) if flag == "--to"]
    values += [argument.removeprefix("--to=") for argument in arguments if argument.startswith("--to=")]
    return tuple(name for name in OPERATIONS if name in values)


def operation_flags(names: Sequence[str] = tuple(OPERATIONS)) -> dict[str, ModelFlag]:
    """The flags of these operations by field name. A flag that several of them have can be given for each."""
    return {
        field: _for_several(flags) for field, flags in _by_field(names, lambda name: OPERATIONS[name].options).items()
    }


def calibration_flags(names: Sequence[str] = tuple(OPERATIONS)) -> dict[str, ModelFlag]:
    """The flags of the calibrations of these operations by field name. One operation is calibrated at a time."""
    settings = _by_field(names, lambda name: OPERATIONS[name].calibration_settings)
    return {field: replace(_joined(flags), panel=CALIBRATION) for field, flags in settings.items()}


def _by_field(names: Sequence[str], model: Callable[[str], type[BaseModel] | None]) -> dict[str, dict[str, ModelFlag]]:
    """For each field the flag of every operation whose model has it."""
    found: dict[str, dict[str, ModelFlag]] = {}
    for name in names:
        if (own := model(name)) is not None:
            for field, flag in flags_of(own).items():
                found.setdefault(field, {})[name] = flag
    return found


def _for_several(flags: Mapping[str, ModelFlag]) -> ModelFlag:
    """One flag from those of several operations, which can be given for one of them."""
    joined = replace(_joined(flags), panel=f"Options of {' and '.join(flags)}")
    if len(flags) == 1 or joined.kind in (bool, dict):
        return joined
    text = f"{joined.help} For one operation: {next(iter(flags))}=VALUE (repeatable)."
    return replace(joined, help=text, addressed=True)


def _joined(flags: Mapping[str, ModelFlag]) -> ModelFlag:
    """One flag from the flags of several operations, which differ only in their help."""
    first = next(iter(flags.values()))
    words = dict.fromkeys(word for flag in flags.values() for word in flag.words)
    texts = {name: flag.help for name, flag in flags.items()}
    same = len(set(texts.values())) == 1
    text = first.help if same else " ".join(f"{name}: {each}" for name, each in texts.items())
    defaults = {name: flag.default for name, flag in flags.items()}
    default = first.default
    if len(set(defaults.values())) > 1:
        default = "; ".join(f"{name}: {each}" for name, each in defaults.items() if each)
    return replace(first, help=text, default=default, words=tuple(words))


def operations_from_flags(names: Sequence[str], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each chosen operation with the options that its schema has.

    Args:
        names: of the operations, in order.
        given: options by name, None for an option that was not given. A list holds texts; each may be meant for
            one operation: ``ssmax=0-3``.

    Raises:
        UsageError: an operation is unknown, or an option fits none that was chosen.
    """
    unknown = [name for name in names if name not in OPERATIONS]
    if unknown:
        raise unknown_operation(unknown[0])
    chosen: dict[str, dict[str, Any]] = {name: {"name": name} for name in names}
    if len(chosen) < len(names):
        raise UsageError(f"the operation {max(names, key=names.count)!r} is given twice")
    for option, value in given.items():
        if value is None:
            continue
        fitting = [name for name in chosen if option in OPERATIONS[name].options.model_fields]
        if not fitting:
            owners = [name for name, one in OPERATIONS.items() if option in one.options.model_fields]
            raise UsageError(
                f"{spelled(option)} is no option of {' or '.join(chosen)}",
                hint=f"It belongs to --to {', --to '.join(owners)}.",
            )
        for target, text in _addressed(spelled(option), value, fitting) if isinstance(value, list) else [(None, value)]:
            for name in fitting if target is None else [target]:
                chosen[name][option] = text
    return list(chosen.values())


def _addressed(flag: str, texts: list[str], fitting: Sequence[str]) -> list[tuple[str | None, str]]:
    """``ssmax=0-3`` as (ssmax, 0-3). A text for all of them (None) comes first, so that the exceptions win."""
    found: list[tuple[str | None, str]] = []
    for text in texts:
        name, equals, value = text.rpartition("=")
        if equals and name not in fitting:
            raise UsageError(
                f"{flag} {text!r}: {name!r} is not among the chosen operations that have this option",
                hint=f"For example: {flag} {fitting[0]}={value}",
            )
        found.append((name if equals else None, value))
    targets = [target for target, _ in found]
    if len(set(targets)) < len(targets):
        raise UsageError(f"{flag} is given twice for the same operation: {', '.join(texts)}")
    return sorted(found, key=lambda item: item[0] is not None)
