"""What is learned about a checkpoint later: appended to its record, and its card written anew from all of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.checkpoint import dump_json, load_json, replace_file
from surgery.checkpoint.record import EVALUATION_NAME, RECORD_FOLDER, VERIFICATION_NAME
from surgery.conversion.card import write_card
from surgery.conversion.plan import CARD_NAME
from surgery.conversion.reverting import read_history, read_plan


def record_verification(folder: Path, run: Mapping[str, Any]) -> None:
    """Append a verification to ``verify.json``, and show it in the card."""
    _append(folder / VERIFICATION_NAME, run)
    refresh_card(folder)


def record_evaluation(folder: Path, run: Mapping[str, Any]) -> None:
    """Append an evaluation to ``evaluate.json``, and show it in the card.

    Args:
        folder: a converted checkpoint.
        run: ``markdown``, what the card says, beside whatever else is to be kept.

    Raises:
        PlanRefusedError: the folder was not converted by this tool.
    """
    read_plan(folder, check_hash=False)
    _append(folder / EVALUATION_NAME, run)
    refresh_card(folder)


def refresh_card(folder: Path) -> None:
    """The card, from the plan, the trainings, and the last verification and evaluation."""
    verification = _last(folder / VERIFICATION_NAME)
    if verification is not None:
        ran_with = ", ".join(f"{name} {value}" for name, value in verification["environment"].items())
        verification = {**verification, "environment": ran_with}
    evaluation = _last(folder / EVALUATION_NAME)
    write_card(
        folder / CARD_NAME,
        read_plan(folder, check_hash=False),
        source_card=folder / RECORD_FOLDER / "source" / CARD_NAME,
        verification=verification,
        evaluation=None if evaluation is None else str(evaluation["markdown"]),
        trained=[_trained_line(entry) for entry in read_history(folder)],
    )


def _append(path: Path, run: Mapping[str, Any]) -> None:
    """The newest run is the last one, and none is lost."""
    replace_file(path, dump_json({"schema": 1, "runs": [*_runs(path), run]}).encode())


def _runs(path: Path) -> list[Any]:
    return load_json(path).get("runs", []) if path.is_file() else []


def _last(path: Path) -> dict[str, Any] | None:
    runs = _runs(path)
    return runs[-1] if runs else None


def _trained_line(entry: dict[str, Any]) -> str:
    """One training for the card; a merge of an adapter has no count of tokens."""
    what, tokens = str(entry.get("trained")), entry.get("tokens")
    return f"{what}, by {entry.get('step')}" if tokens is None else f"{what}: {tokens} tokens"
