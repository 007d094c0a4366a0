"""Checks of the settings of a calibration against the options and the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgery.errors import UsageError
from surgery.operations.screening.calibration_settings import CalibrationSettings
from surgery.operations.screening.options import ScreeningOptions

_BY_KEYS = "choose by keys: --save keys"


def check_settings(settings: CalibrationSettings, options: Mapping[str, Any]) -> None:
    """Refuse settings without effect.

    Raises:
        UsageError: groups share windows, but the options leave out some heads of a group; a setting of thresholds is
            given where none are chosen; or a setting of the guard or of windows is given for a unit without a guard.
    """
    _check_save(settings, options)
    if settings.by_group and options.get("heads") is not None:
        raise UsageError(
            "windows by group need all heads of a group, but heads chooses some of them",
            hint="Leave heads out, or let each head have its own window: save keys, and windows by head.",
        )
    if options.get("form") != "unit" or options.get("renormalisation") == 1:
        return
    given = sorted({"max_loss_increase", "budget", "softness", "windows"} & settings.model_fields_set)
    if given:
        raise UsageError(
            f"{given[0]} has no effect for the form unit: its heads are fitted to the outputs of attention, and "
            "training recovers the loss",
            hint="Leave it out, or start as the source with renormalisation 1.",
        )


def _check_save(settings: CalibrationSettings, options: Mapping[str, Any]) -> None:
    if settings.save == "keys":
        if settings.context is not None:
            raise UsageError(
                "context has no effect: the choice by keys counts the rejected keys of the observed passages",
                hint="Leave it out, or save memory or time.",
            )
        return
    if options.get("form") == "unit":
        raise UsageError(
            f"save {settings.save} chooses windows without thresholds, and a screening unit needs both",
            hint="Leave it out.",
        )
    if settings.windows == "head":
        raise UsageError(
            f"save {settings.save} needs windows by group: one open head keeps the whole cache of its group",
            hint=f"Leave windows out, or {_BY_KEYS}.",
        )
    if settings.budget is not None:
        raise UsageError(
            f"budget chooses by softmax mass what rejects most keys; it has no effect with save {settings.save}",
            hint=f"Leave it out (max_loss_increase bounds the loss), or {_BY_KEYS}.",
        )
    if "softness" in settings.model_fields_set:
        raise UsageError(
            f"softness is that of thresholds, and save {settings.save} chooses none",
            hint=f"Leave it out, or {_BY_KEYS}.",
        )


def recorded(
    settings: CalibrationSettings,
    lengths: Sequence[int],
    screening: ScreeningOptions,
    before: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The settings that a calibration records."""
    return {
        **settings.model_dump(mode="json"),
        "lengths": list(lengths),
        "context": None if settings.save == "keys" else settings.context or max(lengths),
        "windows": "group" if settings.by_group else "head",
        "heads": None if screening.heads is None else list(screening.heads),
        "sinks": screening.sinks,
        "full_window": screening.full_window,
        "before": [str(other["name"]) for other in before],
        **({} if screening.form == "gated" else {"form": "unit", "renormalisation": screening.renormalisation}),
    }
