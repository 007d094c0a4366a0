"""One result from finished parts: paired differences, intervals, verdicts; plain data in, plain data out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from surgery.checkpoint import sha256_json
from surgery.errors import UsageError
from surgery.evaluation.control import with_control
from surgery.evaluation.measure import Measurement
from surgery.evaluation.measures import MEASURES
from surgery.evaluation.models import ModelUse
from surgery.evaluation.results import EvaluationResult
from surgery.evaluation.statistics import INTERVAL, combine


def assemble(
    measurements: Sequence[Measurement],
    *,
    against: str | None = None,
    trainings: Mapping[str, list[dict[str, Any]]] | None = None,
    warnings: Sequence[str] = (),
) -> EvaluationResult:
    """One result from the finished parts of some models.

    Args:
        measurements: as the results folder holds them. Parts with the same options and data make one section.
        against: fingerprint of the base; None compares nothing.
        trainings: training runs by fingerprint.
        warnings: what a reader must know besides.

    Raises:
        UsageError: there are no measurements, or no measurement of the base.
    """
    if not measurements:
        raise UsageError("there are no finished measurements", hint="Run `surgery evaluate` first.")
    uses: dict[str, ModelUse] = {}
    for measurement in measurements:
        use = TypeAdapter(ModelUse).validate_python(measurement["model"])
        uses.setdefault(use.fingerprint, use)
    for measurement in measurements:  # a base may have been measured in the turns of a model only
        if measurement.get("base_model") is not None:
            use = TypeAdapter(ModelUse).validate_python(measurement["base_model"])
            if use.fingerprint == against:
                uses.setdefault(use.fingerprint, use)
    if against is not None and against not in uses:
        raise UsageError(f"no results found for the base model {against[:12]}")
    models = [fingerprint for fingerprint in uses if fingerprint != against] or [*uses]
    sections = []
    for group in _groups(measurements):
        own = {measurement["model"]["fingerprint"]: measurement for measurement in group}
        base = own.get(against) if against is not None else None
        found = [(number, own[fingerprint]) for number, fingerprint in enumerate(models) if fingerprint in own]
        section = MEASURES[group[0]["part"]["kind"]].section(found, base, len(models))
        if section is not None:
            sections.append(section)
    if against is not None and uses[against].operations and not all(uses[one].operations for one in models):
        warnings = [
            *warnings,
            f"{uses[against].name} is converted, and it is the base of a model that is not: the other way round, a "
            "change would be what the conversion did.",
        ]
    verdicts = []
    for number in range(len(models)) if against is not None else ():
        results = [result for section in sections for result in section.results if result.model == number]
        findings = [finding for result in results if (finding := getattr(result, "finding", None)) is not None]
        runs = (trainings or {}).get(models[number], [])
        base_trained = bool((trainings or {}).get(str(against)))
        verdicts.append(with_control(combine(number, findings), runs, base_trained=base_trained))
    return EvaluationResult(
        suite=", ".join(dict.fromkeys(measurement["suite"] for measurement in measurements)),
        models=tuple(uses[fingerprint] for fingerprint in models),
        against=uses[against] if against is not None else None,
        verdicts=tuple(verdicts),
        sections=tuple(sections),
        interval=INTERVAL,
        environment=dict(measurements[-1]["environment"]),
        warnings=tuple(dict.fromkeys([*warnings, *_warnings(sections, list(uses.values()))])),
        trainings=dict(trainings or {}),
    )


def _groups(measurements: Sequence[Measurement]) -> list[list[Measurement]]:
    """Measurements with the same options and data, in the order in which they first appear."""
    groups: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        key = sha256_json([measurement["part"], measurement["data"]["fingerprint"]])
        groups.setdefault(key, []).append(measurement)
    return list(groups.values())


def _warnings(sections: Sequence[Any], models: Sequence[ModelUse]) -> list[str]:
    found = []
    longest = 0
    for section in sections:
        data = getattr(section, "data", None)
        if data is None:
            longest = max([longest, *getattr(section, "lengths", ())])
        else:
            longest = max(longest, data.longest)
            if data.longest < data.length:
                found.append(
                    f"{section.title}: the longest sequence has {data.longest} tokens of {data.length}; longer "
                    "contexts were not measured."
                )
        found += MEASURES[section.kind].warnings(section)
    for use in models:
        if use.trained_length is not None and longest > use.trained_length:
            found.append(f"{use.name} has {use.trained_length} positions; sequences of {longest} tokens are longer.")
    return found
