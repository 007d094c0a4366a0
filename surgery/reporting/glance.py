"""What a reader wants to know first: what the model is, whether to keep it, what that rests on, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

from surgery.reporting.formats import TIMES, count, number, size
from surgery.words import counted

Plain = Mapping[str, Any]

# Kinds of measures in words, for the row of what was not measured.
KINDS = {
    "loss": "loss by position",
    "sliding": "loss of whole documents",
    "retrieval": "retrieval",
    "tasks": "tasks",
    "attention": "attention",
    "speed": "speed and memory",
}


def identity(result: Plain, use: Plain) -> str:
    """What a model is, in a few words: its base with the operations on it, its size, and the length it knows."""
    base = result["against"]
    done = " and ".join(use["operations"])
    what = [f"{base['name']} with {done}" if base is not None and done else done or use["model_type"]]
    what.append(f"{count(use['parameters'])} parameters")
    learned = sum(_numbers(one["values"]) for one in use["learned"])
    if learned:
        what.append(f"{counted(learned, 'learned number')}")
    runs = _runs(result, use)
    if runs:
        tokens = sum(run.get("tokens") or 0 for run in runs)
        what.append(f"trained on {count(tokens)} tokens" if tokens else "trained")
    return ", ".join(what)


def _numbers(values: Any) -> int:
    if isinstance(values, Mapping):
        return sum(_numbers(value) for value in values.values())
    if isinstance(values, list):
        return sum(_numbers(value) for value in values)
    return 1 if isinstance(values, int | float) else 0


def keep_it(result: Plain, verdict: Plain) -> str:
    """One sentence: whether to keep the model, by the verdict and what was measured."""
    word = verdict["word"]
    longest = count(_longest(result))
    missing = _missing(result)
    lacking = f" (not measured here: {', '.join(missing)})" if missing else ""
    gains, losses, unknown = (
        " and in ".join(finding["measure"] for finding in verdict["findings"] if finding["word"] == sort)
        for sort in ("gained", "lost", "undecided")
    )
    nothing_lost = f"; whether it lost in {unknown} is undecided" if unknown else " and lost nothing"
    nothing_gained = (
        f"; whether it gained in {unknown} is undecided" if unknown else " and gained nothing that was measured"
    )
    return {
        "gained": f"Yes, for texts like these up to {longest} tokens: it gained in {gains}{nothing_lost}{lacking}.",
        "lost": f"Not as it is: it lost in {losses}{nothing_gained}{lacking}.",
        "mixed": f"That depends on your use: it gained in {gains} and lost in {losses}{lacking}.",
        "kept": f"Only for what else it gives you: up to {longest} tokens it lost nothing and gained nothing{lacking}."
        f"{_more(result)}",
        "no difference": f"Nothing speaks against it, and nothing for it: every number is the base's up to {longest} "
        f"tokens{lacking}.",
        "undecided": f"That cannot be said yet: measure more texts or prompts{lacking}.{_more(result)}",
    }[word]


def _more(result: Plain) -> str:
    """What to run to know more, where facts in long texts were not asked for."""
    asked = any(section.get("options", {}).get("task") == "recall" for section in result["sections"])
    return "" if asked else " To know more: surgery evaluate with --suite recall asks for facts in long texts."


def rests_on(result: Plain, verdict: Plain) -> list[str]:
    """What the verdict depends on: the length, the texts, and the training."""
    use = result["models"][verdict["model"]]
    found = []
    longest, trained = _longest(result), use["trained_length"]
    if trained and longest:
        share = f"{longest / trained:.0%}" if longest <= trained else f"{longest / trained:.1f} {TIMES}"
        found.append(
            f"Measured up to {count(longest)} tokens, {share} of the {count(trained)} that the model was made for"
            + (". What happens beyond was not measured." if longest <= trained else ".")
        )
    measured = list(
        dict.fromkeys(
            text["name"] for section in result["sections"] for text in section.get("data", {}).get("texts", ())
        )
    )
    calibrated = [name for name in measured if any(_ends_in(name, own) for own in use.get("calibrated_on", ()))]
    if calibrated:
        found.append(
            f"Its numbers were chosen on {len(calibrated)} of these {counted(len(measured), 'text')}: measure on "
            "others before you rely on this."
        )
    runs = _runs(result, use)
    if runs:
        patterns = list(dict.fromkeys(text for run in runs for text in run.get("texts", ())))
        trained = [name for name in measured if any(_is_among(name, pattern) for pattern in patterns)]
        same = any(_within(name, pattern) for name in measured for pattern in patterns)
        if trained:
            found.append(
                f"It was trained on {len(trained)} of these {counted(len(measured), 'text')}: measure on others before "
                "you rely on this."
            )
        elif same:
            found.append(
                "It was trained on texts from the same place as these, so of the same kind; on texts of other kinds "
                "it may gain less, or lose."
            )
        elif patterns and measured:
            found.append(f"It was trained on other texts than these: {', '.join(patterns[:3])}.")
    return found


def _ends_in(name: str, own: str) -> bool:
    """Whether the path of a file ends in a shorter one."""
    parts, end = PurePosixPath(name).parts, PurePosixPath(own).parts
    return bool(end) and parts[-len(end) :] == end


def _is_among(name: str, pattern: str) -> bool:
    """Whether a file is the one of a pattern, lies in its folder, or matches it."""
    path = PurePosixPath(name)
    return path == PurePosixPath(pattern) or path.is_relative_to(PurePosixPath(pattern)) or fnmatch(name, pattern)


def _within(name: str, pattern: str) -> bool:
    """Whether a file lies in the folder of a pattern, or matches it."""
    path, place = PurePosixPath(name), PurePosixPath(pattern)
    if any(mark in pattern for mark in "*?["):
        fixed = [part for part in place.parts[:-1] if not any(mark in part for mark in "*?[")]
        return fnmatch(name, pattern) or (bool(fixed) and path.is_relative_to(PurePosixPath(*fixed)))
    # Files of one folder are of one kind too, as far as anything here can tell.
    return path.is_relative_to(place) or (bool(place.suffix) and len(place.parts) > 1 and path.parent == place.parent)


def rows(result: Plain, model: int) -> list[tuple[str, str, str]]:
    """Speed and memory of a model, and what was not measured: name, of the base, of the model."""
    found: list[tuple[str, str, str]] = []
    for section in result["sections"]:
        if section["kind"] != "speed":
            continue
        for own in section["results"]:
            if own["model"] != model:
                continue
            found += [
                (f"{case['case']}, tokens per second", number(case["base_rate"], 1), number(case["rate"], 1))
                for case in own["cases"]
            ]
            uses = {use["model"]: use for use in own["memory"]}
            base = uses.get(len(result["models"]))
            mine = uses.get(model)
            if mine is not None:
                tokens = count(mine["tokens"])
                found.append((f"cache of {tokens} tokens", size(base and base["cache"]), size(mine["cache"])))
    found += [(what, "", "not measured") for what in _missing(result)]
    return found


def _missing(result: Plain) -> list[str]:
    """Measures that are not part of the result; the loss by position stands for that of whole documents."""
    there = {section["kind"] for section in result["sections"]}
    if there & {"loss", "sliding"}:
        there |= {"loss", "sliding"}
    return [word for kind, word in KINDS.items() if kind not in there and kind != "attention"]


def _longest(result: Plain) -> int:
    """Tokens of the longest measured sequence."""
    lengths: list[int] = [0]
    for section in result["sections"]:
        if "data" in section:
            lengths.append(section["data"]["longest"])
        lengths += section.get("lengths", [])
    return max(lengths)


def _runs(result: Plain, use: Plain) -> Sequence[Plain]:
    found: Sequence[Plain] = result["trainings"].get(use["fingerprint"], [])
    return found
