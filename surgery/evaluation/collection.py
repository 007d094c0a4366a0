"""Finished measurements from several folders as one result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.checkpoint.near_folders import did_you_mean
from surgery.errors import UsageError
from surgery.evaluation.assembly import assemble
from surgery.evaluation.folders import EVALUATION
from surgery.evaluation.measures import MEASURES
from surgery.evaluation.results import EvaluationResult
from surgery.evaluation.store import KIND, read_measurement


@dataclass(frozen=True)
class Collection:
    """A result and its provenance."""

    result: EvaluationResult
    provenance: dict[str, Any]


def collect(folders: Sequence[str | Path], *, against: str | None = None) -> Collection:
    """Every finished measurement below some folders, as one result.

    Args:
        folders: results folders, folders that ``surgery evaluate`` wrote, or their ``evaluation.json``.
        against: the base, by name or the start of its fingerprint; default: the base of those evaluations.

    Raises:
        UsageError: there are no measurements, a file is not valid, or the base is not among the models.
    """
    measurements: dict[str, dict[str, Any]] = {}
    evaluations = []
    for given in folders:
        path = Path(given)
        folder = path.parent if path.name == EVALUATION else path
        if not folder.is_dir():
            raise UsageError(
                f"{path} is not a folder of results",
                hint=did_you_mean(str(folder)) + "Pass the folder that `surgery evaluate` wrote.",
            )
        for file in sorted(folder.rglob("*.json")):
            if file.name == EVALUATION:
                evaluations.append(_evaluation(file))
            elif _is_measurement(file):
                measurement = read_measurement(file)
                measurements[measurement["key"]] = measurement
    if not measurements:
        raise UsageError(
            f"there are no finished measurements in {', '.join(map(str, folders))}",
            hint="Pass the folder that `surgery evaluate` wrote, with its subfolder `results`.",
        )
    # In the order of the registry, whatever the file system gives first.
    order = {kind: place for place, kind in enumerate(MEASURES)}
    found = sorted(measurements.values(), key=lambda one: order.get(one["part"]["kind"], len(order)))
    base = _base(found, evaluations, against)
    trainings: dict[str, Any] = {}
    for evaluation in evaluations:
        trainings |= evaluation.get("trainings", {})
    commands = dict.fromkeys(evaluation["provenance"]["command"] for evaluation in evaluations)
    measured = sorted({evaluation["provenance"]["measured"] for evaluation in evaluations})
    provenance = {"command": "; ".join(commands), "measured": ", ".join(measured)}
    return Collection(assemble(found, against=base, trainings=trainings), provenance)


def _is_measurement(file: Path) -> bool:
    """Whether the first bytes say so: other JSON files may be there, and can be large."""
    with file.open("rb") as opened:
        return f'"kind": "{KIND}"'.encode() in opened.read(200)


def _evaluation(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{file} is not JSON: {error}") from error
    EvaluationResult.from_dict(content)
    return content


def _base(
    measurements: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]], against: str | None
) -> str | None:
    known = {one["model"]["fingerprint"]: one["model"]["name"] for one in measurements}
    if against is not None:
        fits = [
            fingerprint
            for fingerprint, name in known.items()
            if against in (name, name.rpartition("/")[2]) or (len(against) >= 6 and fingerprint.startswith(against))
        ]
        if len(fits) != 1:
            which = "no model" if not fits else "several models"
            names = ", ".join(f"{name} ({fingerprint[:12]})" for fingerprint, name in known.items())
            raise UsageError(f"--against {against} is {which} of these results", hint=f"The models are {names}.")
        return fits[0]
    bases = {evaluation["against"]["fingerprint"] for evaluation in evaluations if evaluation["against"] is not None}
    present = [base for base in bases if base in known]
    if len(present) > 1:
        raise UsageError("these results were measured against different bases", hint="Choose one with --against NAME.")
    return present[0] if present else None
