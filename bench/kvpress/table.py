"""The table: each press and model minus the whole cache, and each press minus the screened model of its share.

Intervals are paired, and resample whole cases.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.kvpress.case import Case
from surgery.evaluation.statistics import Resampling

TASKS = ("loss", "passkey", "recall")
SCREENED = 0.0  # in place of the share that a press was asked for: a screened model has that of its windows
# The whole cache of the source: of kvpress's side, or where no press was run that of `ours SOURCE --label none`.
WHOLE = (("none", 1.0), ("none", SCREENED))
SAME_SHARE = 0.01  # the greatest difference of two shares that are compared
MINUS_SCREENED = ("loss minus screened", "loss minus screened, low", "loss minus screened, high")


def rows(cases: list[Case], work: Path) -> list[dict[str, Any]]:
    """A row for each task, press and share, from the cases that every side has finished.

    ``loss``: nats per scored token; ``right``: share of exact continuations. Changes are those to the whole cache of
    the source. ``screened`` names the screened model with the share of a press, and ``loss minus screened`` is the loss
    of the press minus that model's.
    """
    sides = sorted(folder.name for folder in work.iterdir() if folder.is_dir())
    found: dict[str, dict[tuple[str, float], dict[str, Any]]] = {}
    for case in cases:
        files = [work / side / f"{case.name}.json" for side in sides]
        if all(file.is_file() for file in files):
            every = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
            found[case.name] = {(row["press"], row.get("asked", SCREENED)): row for row in every}
    return [row for task in TASKS for row in of_task(task, cases, found)]


def of_task(task: str, cases: list[Case], found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    own = [case.name for case in cases if case.task == task and case.name in found]
    if not own:
        return
    common = set.intersection(*(set(found[name]) for name in own))
    source = next((key for key in WHOLE if key in common), None)
    if source is None:
        raise SystemExit("no side has the whole cache: run `presses`, or `ours SOURCE --label none`")
    resampling = Resampling([name for name in own for _ in found[name][source]["loss"]])

    def values(key: tuple[str, float], measure: str) -> Any:
        return np.array([value for name in own for value in found[name][key][measure]], dtype=np.float64)

    shares = {key: float(np.mean([found[name][key]["share"] for name in own])) for key in common}
    for key in sorted(common, key=lambda key: (-found[own[0]][key]["share"], key[0])):
        row: dict[str, Any] = {"task": task, "press": key[0], "cases": len(own), "share": shares[key]}
        for measure, title in (("loss", "loss"), ("exact", "right")):
            mine = values(key, measure)
            change = resampling.mean(mine - values(source, measure), np.ones_like(mine))
            row |= {title: float(mine.mean()), f"{title}, change": change.value}
            row |= {f"{title}, low": change.low, f"{title}, high": change.high}
        model = None if key == source else of_same_share(key, shares)
        row |= {"screened": model and model[0], **dict.fromkeys(MINUS_SCREENED)}
        if model is not None:
            difference = resampling.mean(values(key, "loss") - values(model, "loss"), np.ones_like(mine))
            row |= dict(zip(MINUS_SCREENED, (difference.value, difference.low, difference.high), strict=True))
        if task == "loss":
            row["worst change"] = float((values(key, "loss") - values(source, "loss")).max())
        yield row


def of_same_share(press: tuple[str, float], shares: dict[tuple[str, float], float]) -> tuple[str, float] | None:
    """The screened model with the share that a press keeps; None for a screened model, or where none has it."""
    models = [key for key in shares if key[1] == SCREENED and key not in WHOLE]
    if press in models or not models:
        return None
    nearest = min(models, key=lambda key: abs(shares[key] - shares[press]))
    return nearest if abs(shares[nearest] - shares[press]) <= SAME_SHARE else None
