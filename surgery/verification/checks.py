"""The result of a verification, as plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One check: what was asked, how it ended, and what was measured.

    ``value`` and ``bound`` are the measured number and the greatest allowed one, where there is one.
    """

    name: str
    status: Status
    detail: str
    value: float | None = None
    bound: float | None = None


@dataclass(frozen=True)
class Verification:
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
    def verdict(self) -> str:
        """One line: how many checks passed."""
        counts = {status: sum(check.status == status for check in self.checks) for status in ("passed", "skipped")}
        if self.failed:
            return f"{len(self.failed)} of {len(self.checks)} checks failed"
        passed = f"{counts['passed']} check{'' if counts['passed'] == 1 else 's'} passed"
        return passed + (f", {counts['skipped']} skipped" if counts["skipped"] else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a measured value that is not finite is null, since JSON has no such number."""
        checks = [asdict(check) for check in self.checks]
        for check in checks:
            if check["value"] is not None and not math.isfinite(check["value"]):
                check["value"] = None
        return {**asdict(self), "checks": checks, "verdict": self.verdict, "passed": not self.failed}


def bounded(name: str, value: float, bound: float, what: str = "greatest logit difference") -> Check:
    """A check that passes if ``value`` is at most ``bound``; a NaN fails."""
    status: Status = "passed" if value <= bound else "failed"
    return Check(name, status, f"{what} {value:.3g} (bound {bound:.3g})", value, bound)
