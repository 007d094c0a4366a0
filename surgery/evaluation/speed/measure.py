"""Rates of prefill and decoding, and memory, of a model and of its base in the same turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from surgery.evaluation.measure import PairedMeasure
from surgery.evaluation.speed.options import SpeedPart
from surgery.evaluation.speed.stopwatch import interleaved, ratio
from surgery.evaluation.speed.workloads import decoding_call, memory, prefill_call


@dataclass(frozen=True)
class SpeedMeasure(PairedMeasure):
    """Tokens per second, the ratio of times model over base within each turn, and bytes."""

    part: SpeedPart

    def run(self, model: Any, base: Any | None, on_case: Callable[[str], None]) -> list[dict[str, Any]]:
        """One row for each timed case (``case``, ``rate``, ``base_rate``, ``time_ratio``), then one of each memory."""
        part = self.part
        models = {"model": model, **({"base": base} if base is not None else {})}
        cases: list[tuple[str, int, Callable[[Any], Callable[[], Any]]]] = [
            (f"prefill {length}", length, partial(prefill_call, length=length)) for length in part.prefill
        ]
        after, steps = part.decode_after, part.decode_tokens
        cases.append((f"decode {steps} after {after}", steps, partial(decoding_call, prompt=after, steps=steps)))
        rows: list[dict[str, Any]] = []
        for name, tokens, make in cases:
            on_case(name)
            seconds = interleaved({key: make(one) for key, one in models.items()}, part.repeats)
            rates = {key: tokens / statistics.median(own) for key, own in seconds.items()}
            rows.append(
                {
                    "case": name,
                    "rate": rates["model"],
                    "base_rate": rates.get("base"),
                    "time_ratio": ratio(seconds, "model", "base") if base is not None else None,
                }
            )
        longest = max(part.prefill)
        on_case(f"memory {longest}")
        for key, one in models.items():
            rows.append({"case": f"memory {longest}", "who": key, **memory(one, longest)})
        return rows

    def passes(self) -> list[tuple[int, int]]:
        """Each case, with a first turn that is not timed, and the prefill whose memory is measured."""
        part, turns = self.part, self.part.repeats + 1
        prefills = [(length, turns) for length in part.prefill]
        return [*prefills, (max(part.prefill), 1), (part.decode_after, 1), (1, part.decode_tokens * turns)]
