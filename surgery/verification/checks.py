"""The result of a verification, as plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from surgery.operations.check import Check, Status, bounded
from surgery.result_table import ResultTable, ShownAsTable

__all__ = ["Check", "Status", "Verification", "bounded"]


SOURCE_TENSORS = "source tensors byte for byte"
STARTS_AS_SOURCE = "starts as the source"


@dataclass(frozen=True)
class Verification(ShownAsTable):
    """All checks of a converted checkpoint."""

    model: str
    against: str | None
    plan_hash: str
    environment: dict[str, str]
    checks: tuple[Check, ...] = field(default_factory=tuple)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def starts_as_source(self) -> bool:
        """Whether the output was compared with the source's and is the same."""
        return any(check.name.split(",")[0] == STARTS_AS_SOURCE and check.status == "passed" for check in self.checks)

    @property
    def sentence(self) -> str | None:
        """What the checks mean for the weights and the output; None if a check failed, or nothing was compared."""
        passed = {check.name.split(",")[0] for check in self.checks if check.status == "passed"}
        if self.failed or SOURCE_TENSORS not in passed:
            return None
        same = "; the output is identical to the source's" if self.starts_as_source else ""
        return f"Your weights are untouched{same}."

    @property
    def verdict(self) -> str:
        """One line: how many checks passed."""
        counts = {status: sum(check.status == status for check in self.checks) for status in ("passed", "skipped")}
        if self.failed:
            return f"{len(self.failed)} of {len(self.checks)} checks failed"
        passed = f"{counts['passed']} check{'' if counts['passed'] == 1 else 's'} passed"
        return passed + (f", {counts['skipped']} skipped" if counts["skipped"] else "")

    def to_table(self) -> ResultTable:
        """One row for each check."""
        rows = tuple((check.name, check.status, check.detail, check.value, check.bound) for check in self.checks)
        columns = ("check", "result", "measured", "value", "bound")
        return ResultTable(self.model, columns, rows, (*([self.sentence] if self.sentence else []), self.verdict))

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a measured value that is not finite is null, since JSON has no such number."""
        checks = [asdict(check) for check in self.checks]
        for check in checks:
            if check["value"] is not None and not math.isfinite(check["value"]):
                check["value"] = None
        return {**asdict(self), "checks": checks, "verdict": self.verdict, "passed": not self.failed}
