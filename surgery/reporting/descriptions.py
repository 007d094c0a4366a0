"""What each picture shows, in words: captions for everyone, alternative texts for those who do not see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgery.reporting.wording import TIMES, count, interval, number, signed, span

Plain = Mapping[str, Any]


def describe_losses(result: Plain, section: Plain) -> str:
    """First and last bucket of each model."""
    first = section["results"][0]["buckets"]
    shown = [(result["models"][own["model"]]["name"], own["buckets"], "loss") for own in section["results"]]
    if result["against"] is not None:
        shown.append((result["against"]["name"], first, "base_loss"))
    sentences = [
        f"{name}: {number(buckets[0][key]['value'])} where {span(buckets[0]['first'], buckets[0]['last'])} tokens are "
        f"seen, {number(buckets[-1][key]['value'])} where {span(buckets[-1]['first'], buckets[-1]['last'])} are."
        for name, buckets, key in shown
    ]
    return "Line chart of the loss by tokens seen. " + " ".join(sentences)


def describe_differences(own: Plain) -> str:
    """Every bar with its interval."""
    bars = [
        f"{span(bucket['first'], bucket['last'])}: {signed(bucket['difference']['value'])}"
        f" ({interval(bucket['difference'])}), {bucket['verdict']}"
        for bucket in own["buckets"]
    ]
    overall = own["overall"]["difference"]
    return (
        f"Bar chart of the loss of the model minus its base by tokens seen. {'; '.join(bars)}. "
        f"All: {signed(overall['value'])} ({interval(overall)})."
    )


def describe_retrieval(result: Plain, section: Plain) -> str:
    """The mean of each length."""
    shown = [(result["models"][own["model"]]["name"], own["by_length"], "right") for own in section["results"]]
    if result["against"] is not None and section["results"][0]["base_right"] is not None:
        shown.append((result["against"]["name"], section["results"][0]["by_length"], "base_right"))
    sentences = [
        f"{name}: "
        + "; ".join(f"{score[key]['value']:.0%} at {count(score['length'])} tokens" for score in scores)
        + "."
        for name, scores, key in shown
    ]
    return f"Heat maps of {section['title']}: share of the answers' tokens that is right. {' '.join(sentences)}"


def describe_attention(result: Plain, section: Plain) -> str:
    """Greatest weight and entropy at the first and last range of n."""
    sentences = []
    for own in section["results"]:
        use = result["against"] if own["model"] == len(result["models"]) else result["models"][own["model"]]
        first, last = own["by_n"][0], own["by_n"][-1]
        start, end = span(first["first"], first["last"]), span(last["first"], last["last"])
        sentences.append(
            f"{use['name']}: greatest weight {number(first['greatest'], 3)} at n = {start} and "
            f"{number(last['greatest'], 3)} at n = {end}; entropy there {number(last['entropy'], 2)} nats."
        )
    return "Line charts of the greatest attention weight and of the entropy by n. " + " ".join(sentences)


def describe_attention_maps(result: Plain, section: Plain) -> str:
    """Extremes of each map."""
    sentences = []
    for own in section["results"]:
        use = result["against"] if own["model"] == len(result["models"]) else result["models"][own["model"]]
        cells = _cells(own["layers"], None, [[head[-1] for head in layer] for layer in own["greatest"]])
        sentences.append(f"{use['name']}: {_extremes(cells, lambda value: number(value, 3))}")
    return "Heat maps of the greatest weight by layer and head at the longest n. " + " ".join(sentences)


def describe_rejected(own: Plain) -> str:
    """Means over all heads that screen."""
    means = []
    for key, what in (("rejected_keys", "keys"), ("rejected_blocks", "whole blocks")):
        values = [value for layer in own[key] if layer is not None for value in layer]
        means.append(f"{sum(values) / len(values):.1%} of {what}")
    return f"Heat maps of what screening rejects by layer and head: on average {' and '.join(means)}."


def describe_parameters(learned: Plain) -> str:
    """Extremes and where they are."""
    sentences = []
    for name, rows in learned["values"].items():
        cells = _cells(learned["layers"], learned["heads"], rows)
        sentences.append(f"{name}: {_extremes(cells, signed)}")
    size = f"{len(learned['layers'])} {TIMES} {len(learned['heads'])}"
    return f"Heat map of {' and '.join(learned['values'])} by layer and head ({size}). " + " ".join(sentences)


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


def _cells(
    layers: Sequence[int], heads: Sequence[int] | None, rows: Sequence[Sequence[float | None]]
) -> list[tuple[float, int, int]]:
    return [
        (value, layer, head)
        for layer, row in zip(layers, rows, strict=True)
        for head, value in zip(heads if heads is not None else range(len(row)), row, strict=True)
        if value is not None
    ]


def _extremes(cells: list[tuple[float, int, int]], written: Any) -> str:
    (low, low_layer, low_head), (high, high_layer, high_head) = min(cells), max(cells)
    return (
        f"smallest {written(low)} in layer {low_layer}, head {low_head}; "
        f"largest {written(high)} in layer {high_layer}, head {high_head}."
    )
