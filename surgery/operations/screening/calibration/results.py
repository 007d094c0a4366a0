"""A calibration as plain data: the choice for every head, the texts, and the measurements of the guard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgery.checkpoint import load_json
from surgery.errors import CheckpointError
from surgery.operations.calibration_record import CalibrationRecord
from surgery.operations.screening import PARAMETERS, UNIT_PARAMETERS

SCHEMA = 1


@dataclass(frozen=True)
class CalibratedLayer:
    """One layer: start values and, for each chosen head, the share of rejected keys in the calibration texts.

    The form ``unit`` also has a gain, a bound, and ``missed``: the squared error over the square of the output.
    """

    layer: int
    threshold: tuple[float, ...]
    softness: tuple[float, ...]
    log2_window: tuple[float, ...]
    rejected: tuple[float, ...]
    open: tuple[bool, ...]
    log2_gain: tuple[float, ...] | None = None
    log2_bound: tuple[float, ...] | None = None
    missed: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the values that the form does not have."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class GuardedPassage:
    """One held-out passage: its loss in nats per token without and with screening, and the share of rejected keys."""

    text: str
    tokens: int
    loss: float
    screened: float
    rejected: float

    @property
    def change(self) -> float:
        """Increase of the loss, in nats per token."""
        return self.screened - self.loss


@dataclass(frozen=True)
class Trial:
    """One choice, measured on the held-out passages.

    Attributes:
        knob: price on loss, or budget of softmax mass; the name of a key in calibration.json.
        rejected: share of rejected keys in the observed passages.
        predicted: estimated increase of the loss.
        worst: largest increase of the loss over the held-out passages, or over the measured ones if the trial stopped
            early.
    """

    knob: float
    rejected: float
    predicted: float
    worst: float


@dataclass(frozen=True)
class Calibration(CalibrationRecord):
    """Thresholds, softness and windows for a model, with the record of their calibration.

    Attributes:
        model, commit: the source model.
        settings: the settings of the calibration.
        texts: for each text its name, and the numbers of observed and held-out passages.
        layers: the chosen values.
        guard: the held-out passages with the choice.
        trials: every measured choice, in order.
        warnings: for users.
        saved: what the windows save at each of several lengths, as plain `Saving`.
        estimated: the estimated increase of the loss, in nats per token; None for units.
    """

    model: str
    commit: str | None
    settings: Mapping[str, Any]
    texts: tuple[Mapping[str, Any], ...]
    layers: tuple[CalibratedLayer, ...]
    guard: tuple[GuardedPassage, ...]
    trials: tuple[Trial, ...]
    warnings: tuple[str, ...] = ()
    saved: tuple[Mapping[str, Any], ...] = ()
    estimated: float | None = None

    @property
    def operation(self) -> str:
        """The name of the operation with these values."""
        return "screening"

    @property
    def form(self) -> str:
        """The form of screening."""
        return str(self.settings.get("form", "gated"))

    @property
    def rejected(self) -> float:
        """Share of rejected keys, the mean over the held-out passages."""
        return sum(text.rejected for text in self.guard) / len(self.guard)

    @property
    def worst(self) -> float:
        """Largest increase of the loss over the held-out passages, in nats per token."""
        return max(text.change for text in self.guard)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written into ``surgery/calibration.json``."""
        content = {"schema": SCHEMA, **asdict(self), "layers": tuple(layer.to_dict() for layer in self.layers)}
        # Earlier versions had neither; their records keep their hash.
        new = {"saved": (), "estimated": None}
        return {key: value for key, value in content.items() if key not in new or value != new[key]}

    def options(self) -> dict[str, Any]:
        """Options of the operation ``screening`` with these values."""
        settings = self.settings
        parameters = UNIT_PARAMETERS if self.form == "unit" else PARAMETERS
        exponent = {"renormalisation": settings["renormalisation"]} if self.form == "unit" else {}
        return {
            "name": self.operation,
            "form": self.form,
            **exponent,
            "layers": tuple(entry.layer for entry in self.layers),
            "heads": settings["heads"],
            "sinks": settings["sinks"],
            "full_window": settings["full_window"],
            "values": {
                entry.layer: {name: tuple(getattr(entry, name)) for name in parameters} for entry in self.layers
            },
            "calibration": self.hash,
        }


def read_calibration(path: Path) -> Calibration:
    """A calibration from its file.

    Raises:
        CheckpointError: the file is missing, or this version cannot read it.
    """
    content = load_json(path)
    if content.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path.name} is not a calibration that this version can read: "
            f"its schema is {content.get('schema')!r}, not {SCHEMA}",
            hint="`--calibrate TEXT` writes surgery/calibration.json, and `surgery screen-sweep` one for each point.",
        )
    try:
        return Calibration(
            model=content["model"],
            commit=content["commit"],
            settings=content["settings"],
            texts=tuple(content["texts"]),
            layers=tuple(
                CalibratedLayer(
                    entry["layer"],
                    *(tuple(entry[name]) for name in (*PARAMETERS, "rejected", "open")),
                    *(tuple(entry[name]) if name in entry else None for name in ("log2_gain", "log2_bound", "missed")),
                )
                for entry in content["layers"]
            ),
            guard=tuple(GuardedPassage(**entry) for entry in content["guard"]),
            trials=tuple(Trial(**entry) for entry in content["trials"]),
            warnings=tuple(content["warnings"]),
            saved=tuple(content.get("saved", ())),
            estimated=content.get("estimated"),
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path.name} is not a complete calibration: {error}") from error
