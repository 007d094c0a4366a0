"""A calibration of SSMax as plain data: the numbers of every head, the texts, and the measurements of the guard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from surgery.checkpoint import load_json
from surgery.errors import CheckpointError
from surgery.operations.calibration_record import CalibrationRecord

SCHEMA = 1


@dataclass(frozen=True)
class LayerNumbers:
    """One layer: for each parameter of the form its values, one for each chosen head."""

    layer: int
    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class HeldOutPassage:
    """One held-out passage: its loss in nats per token with SSMax off and on."""

    text: str
    tokens: int
    loss: float
    calibrated: float

    @property
    def change(self) -> float:
        """Increase of the loss, in nats per token."""
        return self.calibrated - self.loss


def worst_change(passages: Sequence[HeldOutPassage]) -> float:
    """Largest mean rise of the loss over the passages of one length, in nats per token; infinite if it is no number."""
    lengths = {passage.tokens for passage in passages}
    rises = [fmean(one.change for one in passages if one.tokens == tokens) for tokens in lengths]
    return math.inf if any(map(math.isnan, rises)) else max(rises)


@dataclass(frozen=True)
class Recall:
    """Answers to questions about facts hidden in held-out text, with SSMax off and on.

    Attributes:
        haystacks, questions: their numbers.
        log_probability, calibrated: mean log-probability of a whole answer.
        right, calibrated_right: share of the answers whose every token is the likeliest.
        low, high: interval (95%) of the change of the log-probability, which resamples whole haystacks; None with a
            single one.
    """

    haystacks: int
    questions: int
    log_probability: float
    right: float
    calibrated: float
    calibrated_right: float
    low: float | None = None
    high: float | None = None

    @property
    def gained(self) -> bool:
        """Whether the answers became likelier, by an interval that excludes zero where there is one."""
        return self.calibrated > self.log_probability and (self.low is None or self.low > 0)


@dataclass(frozen=True)
class HeldOutFindings:
    """What the guard found with one choice of numbers."""

    passages: tuple[HeldOutPassage, ...]
    recall: Recall


@dataclass(frozen=True)
class Round:
    """One step: the loss of the answers to its haystacks before it, and the gain that it promised, in nats."""

    haystacks: int
    tokens: int
    answers: int
    answer_loss: float
    promised: float


@dataclass(frozen=True)
class StepTrial:
    """The last step at one allowance, measured on held-out text.

    Attributes:
        allowed: rise of the loss of text that the step may promise, in nats per token.
        promised: gain in nats per answer.
        worst: largest mean rise of the loss over the held-out passages of one length.
        log_probability: mean log-probability of a held-out answer; None where the loss rises too much, so that the
            answers were not asked for.
    """

    allowed: float
    promised: float
    worst: float
    log_probability: float | None


@dataclass(frozen=True)
class SSMaxCalibration(CalibrationRecord):
    """The numbers of SSMax for a model, with the record of their calibration.

    Attributes:
        model, commit: the source model.
        settings: the settings, with form and N.
        texts: names of the texts.
        layers: the numbers.
        rounds: the steps, in order.
        guard: the held-out passages with the choice.
        recall: the held-out answers with the choice.
        trials: every measured choice, in order.
        warnings: for users.
    """

    model: str
    commit: str | None
    settings: Mapping[str, Any]
    texts: tuple[str, ...]
    layers: tuple[LayerNumbers, ...]
    rounds: tuple[Round, ...]
    guard: tuple[HeldOutPassage, ...]
    recall: Recall
    trials: tuple[StepTrial, ...]
    warnings: tuple[str, ...] = ()

    @property
    def operation(self) -> str:
        """The name of the operation with these values."""
        return "ssmax"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written into ``surgery/calibration.json``."""
        return {"schema": SCHEMA, "operation": self.operation, **asdict(self)}

    def options(self) -> dict[str, Any]:
        """Options of the operation ``ssmax`` with these values."""
        settings = self.settings
        return {
            "name": self.operation,
            "form": settings["form"],
            # A calibration from before there were gains does not have the key.
            "outputs": settings.get("outputs", "unchanged"),
            "reference_length": settings["reference_length"],
            "layers": tuple(entry.layer for entry in self.layers),
            "heads": settings["heads"],
            "values": {entry.layer: dict(entry.values) for entry in self.layers},
            "calibration": self.hash,
        }


def read_calibration(path: Path) -> SSMaxCalibration:
    """A calibration from its file.

    Raises:
        CheckpointError: the file is missing, or this version cannot read it.
    """
    content = load_json(path)
    if content.get("schema") != SCHEMA or content.get("operation") != "ssmax":
        raise CheckpointError(
            f"{path.name} is not a calibration of ssmax that this version can read",
            hint="`surgery convert --to ssmax --calibrate TEXT` writes surgery/calibration.json.",
        )
    try:
        return SSMaxCalibration(
            model=content["model"],
            commit=content["commit"],
            settings=content["settings"],
            texts=tuple(content["texts"]),
            layers=tuple(
                LayerNumbers(entry["layer"], {name: tuple(values) for name, values in entry["values"].items()})
                for entry in content["layers"]
            ),
            rounds=tuple(Round(**entry) for entry in content["rounds"]),
            guard=tuple(HeldOutPassage(**entry) for entry in content["guard"]),
            recall=Recall(**content["recall"]),
            trials=tuple(StepTrial(**entry) for entry in content["trials"]),
            warnings=tuple(content["warnings"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name} is not a complete calibration: {error}") from error
