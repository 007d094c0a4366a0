"""Speed and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from surgery.evaluation.estimates import ResultRow


@dataclass(frozen=True)
class SpeedCase:
    """Tokens per second; ``time_ratio`` is the time divided by the time of the base, the median over turns."""

    case: str
    rate: float
    base_rate: float | None
    time_ratio: float | None


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of one model: ``prefill`` is the peak beside the weights, None where the system does not report it."""

    model: int
    tokens: int
    weights: int
    cache: int
    prefill: int | None


@dataclass(frozen=True)
class SpeedResult:
    """Speed and memory of one model, its base in the same turns."""

    model: int
    cases: tuple[SpeedCase, ...]
    memory: tuple[MemoryUse, ...]


@dataclass(frozen=True)
class SpeedSection:
    """Speed and memory; not part of the verdict."""

    kind: Literal["speed"]
    title: str
    options: dict[str, Any]
    results: tuple[SpeedResult, ...]

    def rows(self) -> list[ResultRow]:
        """Tokens per second of every case, and bytes of weights and cache."""
        found = []
        for own in self.results:
            found += [
                ResultRow(f"{case.case}, tokens per second", own.model, case.rate, case.base_rate) for case in own.cases
            ]
            for use in own.memory:
                found.append(ResultRow("weights, bytes", use.model, float(use.weights)))
                found.append(ResultRow(f"cache of {use.tokens:,} tokens, bytes", use.model, float(use.cache)))
        return found
