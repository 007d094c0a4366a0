"""The record of passed tests by family and version of transformers, which ``surgery families`` shows.

``SURGERY_RECORD_FAMILIES=FILE pytest ...`` writes to FILE, under the installed version, the number of passed tests of
each family that passed the ``NEEDED`` tests and failed none. `make families` does so with both versions.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from surgery.anatomy import FAMILIES

VARIABLE = "SURGERY_RECORD_FAMILIES"
# Identity, equalities, a training step, saving; the dense oracle; loading without surgery, and stock classes.
NEEDED = {
    "test_every_family_in_short",
    "test_operated_model_computes_ssmax",
    "test_a_program_without_surgery_loads_every_family_and_stock_classes_refuse",
}


def lacking(model_type: str, *, to_run: bool = True) -> str | None:
    """Why a family cannot be tested with the installed transformers; None if it can.

    Args:
        model_type: as in config.json.
        to_run: whether the test runs the model; otherwise it only reads the config.
    """
    row = FAMILIES.get(model_type)
    since = row.since if row is not None else None
    installed = version("transformers")
    if row is not None and to_run and installed in row.fails:
        return f"{model_type} cannot be run with transformers {installed}: {row.fails[installed]}"
    if since is None or _numbers(since) <= _numbers(installed):
        return None
    return f"{model_type} needs transformers {since}, and {installed} is installed"


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(".") if number.isdigit()]


def families_of(item: pytest.Item) -> list[str]:
    """The families in the parameters of a test."""
    parameters = getattr(item, "callspec", None)
    given: Iterable[Any] = parameters.params.values() if parameters is not None else ()
    names = [name for value in given for name in (value if isinstance(value, list | tuple) else [value])]
    return sorted({name for name in names if isinstance(name, str) and name in FAMILIES})


class Recorder:
    """Counts passed and failed tests; the main process of pytest writes the record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.passed: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.tests: defaultdict[str, set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one phase of a test."""
        families = [str(value) for name, value in report.user_properties if name == "family"]
        if report.failed:
            self.failed.update(families)
        elif report.passed and report.when == "call":
            self.passed.update(families)
            for name in families:
                self.tests[name].add(report.nodeid.rpartition("::")[2].partition("[")[0])

    def pytest_sessionfinish(self) -> None:
        """Replace the entry of the installed version in the record."""
        record = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        whole = {name for name, tests in self.tests.items() if tests >= NEEDED and not self.failed[name]}
        passed = {name: self.passed[name] for name in sorted(whole)}
        record[version("transformers")] = {"torch": version("torch").partition("+")[0], "passed": passed}
        self.path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def configure(config: pytest.Config) -> None:
    """Record if the environment variable is set."""
    path = os.environ.get(VARIABLE)
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(path)), "families")


def collected(items: Iterable[pytest.Item]) -> None:
    """Add the families to the report of each test, and skip tests that the installed transformers cannot run."""
    for item in items:
        families = families_of(item)
        item.user_properties += [("family", name) for name in families if not lacking(name)]
        parts = set(item.path.parts)
        to_run = "calibration" in parts or not {"anatomy", "operations"} & parts
        reason = lacking(families[0], to_run=to_run) if len(families) == 1 else None
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
