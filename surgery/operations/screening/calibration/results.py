"""A calibration as plain data: what was chosen for every head, on which texts, and what the guard measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgery.checkpoint import load_json, sha256_json
from surgery.errors import CheckpointError
from surgery.operations.screening import PARAMETERS, UNIT_PARAMETERS

SCHEMA = 1


@dataclass(frozen=True)
class CalibratedLayer:
    """One layer: start values and, for each chosen head, the share of keys that the calibration texts lost.

    Of the form ``unit`` there are a gain and a bound too, and the share of the output's square that a head misses.
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
        """Plain data, without what the form does not have."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class GuardedPassage:
    """One held-out passage: its loss in nats per token without and with screening, and the share of keys rejected."""

    text: str
    tokens: int
    loss: float
    screened: float
    rejected: float

    @property
    def change(self) -> float:
        """Rise of the loss."""
        return self.screened - self.loss


@dataclass(frozen=True)
class Trial:
    """One choice that was tried on the held-out passages.

    Attributes:
        knob: price on loss, or budget of softmax mass; the name of a key in calibration.json.
        rejected: share of keys, as the observed passages say.
        predicted: estimated rise of the loss.
        worst: rise of the loss in the held-out passage where it is greatest. Where a trial was given up early, of
            those that were measured.
    """

    knob: float
    rejected: float
    predicted: float
    worst: float


@dataclass(frozen=True)
class Calibration:
    """Thresholds, softness and windows of a model, and how they came about.

    Attributes:
        model, commit: what was calibrated.
        settings: what was asked for.
        texts: name, and passages that were observed and held out.
        layers: what was chosen.
        guard: the held-out passages under the choice.
        trials: every choice that was tried, in order.
        warnings: what a user should know.
    """

    model: str
    commit: str | None
    settings: Mapping[str, Any]
    texts: tuple[Mapping[str, Any], ...]
    layers: tuple[CalibratedLayer, ...]
    guard: tuple[GuardedPassage, ...]
    trials: tuple[Trial, ...]
    warnings: tuple[str, ...] = ()

    @property
    def operation(self) -> str:
        """The name of the operation that the values are for."""
        return "screening"

    @property
    def form(self) -> str:
        """The form of screening that it is for."""
        return str(self.settings.get("form", "gated"))

    @property
    def rejected(self) -> float:
        """Share of keys rejected in the held-out passages, their mean."""
        return sum(text.rejected for text in self.guard) / len(self.guard)

    @property
    def worst(self) -> float:
        """Rise of the loss in the held-out passage where it is greatest."""
        return max(text.change for text in self.guard)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written into ``surgery/calibration.json``."""
        return {"schema": SCHEMA, **asdict(self), "layers": tuple(layer.to_dict() for layer in self.layers)}

    @property
    def hash(self) -> str:
        """SHA-256 of the content."""
        return sha256_json(self.to_dict())

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
        CheckpointError: the file is missing, or is no calibration that this version reads.
    """
    content = load_json(path)
    if content.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path.name} is no calibration that this version reads: "
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
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path.name}: not a whole calibration: {error}") from error
