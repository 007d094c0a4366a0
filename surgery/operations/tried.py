"""The hooks for a trial, `surgery try`: what it tries of an operation, and the control that each must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pydantic import BaseModel

    from surgery.anatomy import Anatomy

Aim = Literal["answers", "memory"]
# About how many tokens a question about a haystack has, with its answer; each continues from the haystack's cache.
QUESTION_TOKENS = 12


@dataclass(frozen=True)
class TrialCandidate:
    """One way to operate on a model that a trial measures.

    Attributes:
        name: of its file in the folder of the trial.
        summary: what it is, in a few words.
        options: as a user gives them; empty where they are derived from another candidate's calibration.
        aim: answers: facts in long texts are found more often; memory: the key-value cache is smaller.
        control: the candidate that it must beat to be recommended; None if the source alone is its measure.
        derived_from: the candidate whose calibration gives its options. Such a one is a control and is not recommended.
    """

    name: str
    summary: str
    options: Mapping[str, Any]
    aim: Aim
    control: str | None = None
    derived_from: str | None = None


class TriedOperation:
    """The hooks of an operation that ``surgery.trial`` calls. Each has a default without effect."""

    def trial_candidates(self) -> tuple[TrialCandidate, ...]:
        """What a trial tries, in order; a control without a calibration of its own follows what it is derived from."""
        return ()

    def trial_settings(self, length: int, effort: float) -> BaseModel:
        """The settings of the calibration of every candidate.

        Args:
            length: tokens of the longest text.
            effort: 1 for as much work as a calibration takes by default, towards 0 for less.
        """
        raise NotImplementedError(f"{type(self).__name__} has no calibration")

    def trial_passes(self, settings: Any, anatomy: Anatomy, number: int) -> list[tuple[int, float]]:
        """The forward passes of the calibration of a candidate: tokens of a pass, and how many there are of it.

        Args:
            settings: from :meth:`trial_settings`.
            anatomy: of the model.
            number: of the candidate; a later one may use what the first has computed.
        """
        raise NotImplementedError(f"{type(self).__name__} has no calibration")

    def kept_cache(self, calibration: Any, anatomy: Anatomy, tokens: int) -> float:
        """The share of the bytes of the key-value cache that stays, after a number of tokens."""
        return 1.0

    def derived_options(self, calibration: Any, anatomy: Anatomy, tokens: int) -> Mapping[str, Any]:
        """The options of a candidate that is derived from a calibration."""
        raise NotImplementedError(f"{type(self).__name__} derives no candidate")

    def option_for_length(self, factor: float) -> str | None:
        """The options of `surgery convert` by which a model reads texts ``factor`` times as long, or None."""
        return None
