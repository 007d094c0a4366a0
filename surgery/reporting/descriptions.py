"""What each picture shows, in words: captions for everyone, alternative texts for those who do not see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgery.reporting.wording import TIMES, count, interval, number, signed, span

Plain = Mapping[str, Any]


def describe_losses(result: Plain) -> str:
    """First and last bucket of each model."""
    first, last = result["buckets"][0], result["buckets"][-1]
    sentences = []
    for key, use in (("loss", result["model"]), ("base_loss", result["against"])):
        if use is not None:
            sentences.append(
                f"{use['name']}: {number(first[key]['value'])} where {span(first['first'], first['last'])} tokens are "
                f"seen, {number(last[key]['value'])} where {span(last['first'], last['last'])} are."
            )
    return "Line chart of the loss by tokens seen. " + " ".join(sentences)


def describe_differences(result: Plain) -> str:
    """Every bar with its interval."""
    bars = [
        f"{span(bucket['first'], bucket['last'])}: {signed(bucket['difference']['value'])}"
        f" ({interval(bucket['difference'])}), {bucket['verdict']}"
        for bucket in result["buckets"]
    ]
    overall = result["overall"]["difference"]
    return (
        f"Bar chart of the loss of the model minus its base by tokens seen. {'; '.join(bars)}. "
        f"All: {signed(overall['value'])} ({interval(overall)})."
    )


def describe_scales(learned: Plain) -> str:
    """Extremes and where they are."""
    cells = [
        (value, layer, head)
        for layer, row in zip(learned["layers"], learned["scale"], strict=True)
        for head, value in zip(learned["heads"], row, strict=True)
    ]
    (low, low_layer, low_head), (high, high_layer, high_head) = min(cells), max(cells)
    return (
        f"Heat map of the scale by layer and head ({len(learned['layers'])} {TIMES} {len(learned['heads'])}). "
        f"Smallest {signed(low)} in layer {low_layer}, head {low_head}; "
        f"largest {signed(high)} in layer {high_layer}, head {high_head}."
    )


def describe_multipliers(learned: Plain) -> str:
    """Median and extremes at each n."""
    points = [
        f"n = {count(point['n'])}: {number(point['smallest'], 3)} to {number(point['largest'], 3)}, "
        f"median {number(point['median'], 3)}"
        for point in learned["multipliers"]
    ]
    return f"Lines of the multiplier of each head against n. {'; '.join(points)}."


def describe_training(rows: Sequence[Plain]) -> str:
    """First and last logged loss."""
    logged = [row for row in rows if isinstance(row.get("loss"), int | float) and row["loss"] == row["loss"]]
    first, last = logged[0], logged[-1]
    return (
        f"Line chart of the training loss: {number(first['loss'])} at step {first.get('step')}, "
        f"{number(last['loss'])} at step {last.get('step')}; the learning rate below."
    )
