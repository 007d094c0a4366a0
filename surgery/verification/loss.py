"""The rise of the loss over the source's, on the same texts, with an interval over documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from surgery.evaluation import evaluate
from surgery.loading import RunOptions
from surgery.verification.checks import Check
from surgery.verification.workload import LOSS_SEQUENCES


def loss_check(
    model: Path,
    source: Path,
    texts: Sequence[str | Path],
    most: float,
    length: int,
    run: RunOptions,
    say: Callable[[str, int, int], None],
) -> Check:
    """The mean loss may rise by ``most`` nats per token.

    Args:
        model, source: folders.
        texts: files, folders and globs.
        most: the greatest rise that passes.
        length: tokens per sequence.
        run: device and attention backend.
        say: called with the progress.
    """

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "tokens":
            say(f"loss of {event['model']}", event["done"], event["total"])

    part = {"kind": "loss", "length": length, "documents": LOSS_SEQUENCES}
    result = evaluate(
        model, against=source, text=texts, suite={"name": "verify", "parts": [part]}, run=run, on_event=on_event
    )
    section = result.section("loss")
    overall = section.results[0].overall
    change = overall.difference
    between = "" if change.low is None else f" (95% interval {change.low:+z.4f} to {change.high:+z.4f})"
    return Check(
        "loss",
        "passed" if change.value <= most else "failed",
        f"change {change.value:+z.4f}{between} over {overall.tokens} predictions in sequences of up to "
        f"{section.data.longest} tokens; the limit is {most:+g}",
        change.value,
        most,
    )
