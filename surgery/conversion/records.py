"""The record in a converted checkpoint: its plan, its trainings, verifications and evaluations, and the card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from surgery.checkpoint import CONFIG_NAME, dump_json, load_config, load_json, replace_file, sha256_json
from surgery.checkpoint.record import (
    EVALUATION_NAME,
    HISTORY_NAME,
    MERGE_NAME,
    PLAN_NAME,
    RECORD_FOLDER,
    VERIFICATION_NAME,
    check_format_version,
)
from surgery.checkpoint.source import check_folder
from surgery.checkpoint.unsupported_weights import adapter_error
from surgery.conversion.card import is_own_card, write_card
from surgery.conversion.external_save import EXTERNAL_STEP, UNKNOWN_WEIGHTS, is_saved_externally, plan_from_config
from surgery.conversion.plan import CARD_NAME, Plan
from surgery.errors import CheckpointError, PlanRefusedError


def read_plan(folder: Path, *, check_hash: bool = True) -> dict[str, Any]:
    """The plan of a converted checkpoint; of one that another program saved, as far as config.json has it.

    Args:
        folder: the converted checkpoint.
        check_hash: whether a plan that was changed afterwards is an error.

    Raises:
        PlanRefusedError: the folder was not converted by this tool.
        CheckpointError: the plan was changed afterwards, or is of a newer format; or the folder is an adapter.
    """
    check_folder(folder)
    if not (folder / PLAN_NAME).is_file():
        if (folder / "adapter_config.json").is_file():
            raise adapter_error(folder)
        if is_saved_externally(folder):
            return plan_from_config(folder)
        if (folder / MERGE_NAME).is_file():
            raise PlanRefusedError(
                f"{folder.name}: no operation is left in it: a merge wrote them into the weights or dropped them",
                hint="`surgery merge` compared its logits. To measure it: surgery evaluate MODEL --against SOURCE.",
            )
        raise PlanRefusedError(
            f"{folder.name}: not a converted checkpoint (it has no {PLAN_NAME})",
            hint="Give the folder that `surgery convert`, `finetune` or `merge` wrote.",
        )
    plan = load_json(folder / PLAN_NAME, limit=64_000_000)
    check_format_version(plan.get("format_version"), folder.name)
    if (folder / CONFIG_NAME).is_file():
        block = load_config(folder / CONFIG_NAME).get("surgery")
        check_format_version(block.get("format_version") if isinstance(block, dict) else None, folder.name)
    content = {name: value for name, value in plan.items() if name != "hash"}
    if check_hash and plan.get("hash") != sha256_json(content):
        raise CheckpointError(f"{folder.name}: {PLAN_NAME} does not have the hash that it names; it was changed")
    try:
        plan_value(plan)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise CheckpointError(f"{folder.name}: {PLAN_NAME} is not a plan: {where}: {problem['msg']}") from error
    return plan


def plan_value(plan: Mapping[str, Any]) -> Plan:
    """The plan from plain data, as :func:`read_plan` gives it.

    Raises:
        ValidationError: it is not a plan.
    """
    return TypeAdapter(Plan).validate_python({name: value for name, value in plan.items() if name != "hash"})


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The trainings that a converted checkpoint went through, oldest first; empty if there were none.

    That another program saved it comes first, since that program may have trained anything.

    Raises:
        CheckpointError: there is a history, and it cannot be read.
    """
    history = folder / HISTORY_NAME
    unknown = [{"step": EXTERNAL_STEP, "trained": UNKNOWN_WEIGHTS}] if is_saved_externally(folder) else []
    if not history.is_file():
        return unknown
    entries = load_json(history).get("entries")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError(f"{HISTORY_NAME} has no list of entries, so what was trained is not known")
    return [*unknown, *(entry for entry in entries if entry.get("step") != "refresh")]


def trained_weights(folder: Path) -> str | None:
    """What was trained besides the operations' own parameters, from the checkpoint's history; None if nothing.

    Raises:
        CheckpointError: there is a history, and it cannot be read.
    """
    trained = [str(entry.get("trained")) for entry in read_history(folder) if changes_weights(entry)]
    return ", ".join(trained) or None


def changes_weights(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of the history trained more than the operations' own parameters."""
    return entry.get("trained") != "scale"


def record_verification(folder: Path, run: Mapping[str, Any], *, in_card: bool = True) -> None:
    """Append a verification to ``verify.json``, and show it in the card of a converted checkpoint."""
    (folder / RECORD_FOLDER).mkdir(exist_ok=True)
    _append(folder / VERIFICATION_NAME, run)
    if in_card:
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
    (folder / RECORD_FOLDER).mkdir(exist_ok=True)
    _append(folder / EVALUATION_NAME, run)
    refresh_card(folder)


def has_own_card(folder: Path) -> bool:
    """Whether surgery may write the card of a converted checkpoint: its own, or one where there is none."""
    card = folder / CARD_NAME
    return not is_saved_externally(folder) or not card.is_file() or is_own_card(card)


def refresh_card(folder: Path) -> None:
    """The card, from the plan, the trainings, and the last verification and evaluation.

    The card that another program wrote stays.
    """
    if not has_own_card(folder):
        return
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
        trained=[trained_line(entry) for entry in read_history(folder)],
        has_record=not is_saved_externally(folder),
    )


def _append(path: Path, run: Mapping[str, Any]) -> None:
    """The newest run is the last one, and none is lost."""
    replace_file(path, dump_json({"schema": 1, "runs": [*_runs(path), run]}).encode())


def _runs(path: Path) -> list[Any]:
    return load_json(path).get("runs", []) if path.is_file() else []


def _last(path: Path) -> dict[str, Any] | None:
    runs = _runs(path)
    return runs[-1] if runs else None


def trained_line(entry: Mapping[str, Any]) -> str:
    """One training for the card; a merge of an adapter has no count of tokens."""
    what, tokens = str(entry.get("trained")), entry.get("tokens")
    if entry.get("step") == EXTERNAL_STEP:
        return what
    return f"{what}, by {entry.get('step')}" if tokens is None else f"{what}: {tokens} tokens"
