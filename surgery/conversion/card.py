"""The model card of a converted checkpoint, drawn from the plan and, once there is one, the verification."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from surgery.checkpoint import load_json, replace_file
from surgery.checkpoint.record import CALIBRATION_NAME, MERGE_NAME, RECORD_FOLDER
from surgery.conversion.code import code_files
from surgery.errors import CheckpointError
from surgery.markdown import escape_markdown
from surgery.operations import OPERATIONS
from surgery.operations.base import CalibrationSummary
from surgery.operations.layer_numbers import summarize_numbers

# Words of card.md.jinja.
_OWN_WORDS = "attention was changed by model-surgery"
_SAFE_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


def write_card(
    path: Path,
    plan: Mapping[str, Any],
    *,
    source_card: Path | None = None,
    verification: Mapping[str, Any] | None = None,
    evaluation: str | None = None,
    trained: Sequence[str] = (),
    has_record: bool = True,
) -> None:
    """Write the card.

    Args:
        path: README.md of the converted checkpoint.
        plan: the plan as plain data.
        source_card: README.md of the source, from which licence and languages are taken over.
        verification: ``environment``, ``verdict`` and ``checks`` of a verification, as plain data.
        evaluation: Markdown of an evaluation.
        trained: one line for each training that followed.
        has_record: whether the folder holds what ``revert`` needs; not after another program saved the model.
    """
    import jinja2  # a plan is shown without it

    environment = jinja2.Environment(autoescape=False, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["md"] = escape_markdown
    template = environment.from_string(files(__package__).joinpath("card.md.jinja").read_text(encoding="utf-8"))
    operations: list[dict[str, Any]] = [
        {
            "name": options["name"],
            "description": describe(options),
            "layers": summarize_numbers(options["layers"]),
            "heads": "all" if options.get("heads") is None else summarize_numbers(options["heads"]),
            "identity": identity or "no",
            "explanation": explain(options),
        }
        for options, identity in zip(plan["operations"], plan["identity"], strict=True)
    ]
    for entry, options in zip(operations, plan["operations"], strict=True):
        entry["calibration"] = calibration_summary(path.parent, options)
    name = str(plan["source"]["name"]).rsplit("/", 1)[-1]
    title = f"{name} with {' and '.join(str(entry['name']) for entry in operations)}"
    text = template.render(
        plan=plan,
        has_code=has_code(plan),
        code=code_files(path.parent, plan) if has_code(plan) else [],
        has_source_card=source_card is not None and source_card.is_file(),
        title=escape_markdown(title),
        operations=operations,
        front_matter=_front_matter(plan, source_card),
        verification=verification,
        evaluation=evaluation,
        trained=list(trained),
        has_record=has_record,
    )
    replace_file(path, text.encode("utf-8"))


def write_merged_card(
    path: Path,
    plan: Mapping[str, Any],
    *,
    source_card: Path,
    changed: int,
    dropped: Collection[str] = (),
    trained: Sequence[str] = (),
) -> None:
    """The card of a checkpoint whose weights hold what was learned in them and in its operations.

    Args:
        path: README.md of the merged checkpoint.
        plan: of the converted one, as plain data.
        source_card: README.md of the source, from which licence and languages are taken over.
        changed: number of tensors that the merge changed.
        dropped: names of the operations that changed nothing.
        trained: one line for each training, where one changed weights.
    """
    source = plan["source"]
    name = escape_markdown(str(source["name"]).rsplit("/", 1)[-1])
    commit = f" (commit `{escape_markdown(source['commit'])}`)" if source["commit"] else ""
    done = "".join(
        f"- {options['name']}: {escape_markdown(describe(options))}, layers {summarize_numbers(options['layers'])}"
        f"{'; dropped, since it changed nothing in the end' if options['name'] in dropped else ''}\n"
        for options in plan["operations"]
    )
    written = f"The merge changed {changed} tensors"
    if trained:
        lines = "".join(f"- {escape_markdown(line)}\n" for line in trained)
        weights = f"{written}. The weights were trained:\n\n{lines}\n"
    else:
        weights = f"{written}; every other tensor is the source's byte for byte.\n\n"
    text = (
        f"---\n{_front_matter(plan, source_card)}\n---\n\n# {name}, merged\n\n"
        f"{escape_markdown(source['name'])}{commit}, a {escape_markdown(source['model_type'])} model whose attention "
        f"was changed by model-surgery {plan['tool_version']}:\n\n{done}\n{weights}"
        "It has the source's class and no code of its own, so any program that loads the source loads it. "
        f"`{MERGE_NAME}` names the changed tensors.\n"
    )
    if source_card.is_file():
        text += f"\nThe source's card is in `{RECORD_FOLDER}/source/{path.name}`.\n"
    replace_file(path, text.encode("utf-8"))


def calibration_summary(folder: Path, options: Mapping[str, Any]) -> CalibrationSummary | None:
    """What the calibration in a converted checkpoint chose for an operation; None if it has none, or not this one."""
    path = folder / CALIBRATION_NAME
    if options.get("calibration") is None or not path.is_file():
        return None
    try:
        return OPERATIONS[str(options["name"])].summarize_calibration(load_json(path))
    except (KeyError, TypeError, ValueError, CheckpointError):
        return None  # `surgery verify` names a record that is not the plan's


def is_own_card(path: Path) -> bool:
    """Whether surgery wrote a card."""
    return _OWN_WORDS in path.read_text(encoding="utf-8", errors="replace")


def has_code(plan: Mapping[str, Any]) -> bool:
    """Whether modelling code travels in the checkpoint; if not, the family's own class runs it."""
    return not all(OPERATIONS[str(options["name"])].in_config_alone for options in plan["operations"])


def explain(options: Mapping[str, Any]) -> str:
    """What a reader should know of the resolved options of one operation, in Markdown."""
    operation = OPERATIONS[str(options["name"])]
    return operation.explain(operation.options.model_validate(dict(options)))


def describe(options: Mapping[str, Any]) -> str:
    """The resolved options of one operation in one line.

    Raises:
        CheckpointError: they come from a file, and are no options of an operation.
    """
    operation = OPERATIONS.get(str(options.get("name")))
    try:
        if operation is not None:
            return operation.describe(operation.options.model_validate(dict(options)))
        fault = "the operation is not known"
    except ValidationError as error:
        fault = str(error.errors()[0]["msg"])
    raise CheckpointError(f"the plan's options of {options.get('name')!r} are not valid: {fault}")


def _front_matter(plan: Mapping[str, Any], source_card: Path | None) -> str:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    values: dict[str, Any] = _inherited(source_card)
    names = [str(options["name"]) for options in plan["operations"]]
    if plan["source"]["hub_id"]:
        values["base_model"] = plan["source"]["hub_id"]
    values |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["model-surgery", *names]}
    stream = io.StringIO()
    yaml.dump(values, stream)
    return stream.getvalue().strip()


def _inherited(source_card: Path | None) -> dict[str, Any]:
    """Licence and languages of the source's card, where they are plain tags; a card is a stranger's file."""
    from ruamel.yaml import YAMLError

    from surgery.schemas.yaml_text import MAX_BYTES, untrusted_yaml

    if source_card is None or not source_card.is_file() or source_card.stat().st_size > 1_000_000:
        return {}
    parts = source_card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip() or len(parts[1]) > MAX_BYTES:
        return {}
    try:
        found = untrusted_yaml().load(parts[1])
    except (YAMLError, ValueError, RecursionError):
        return {}  # the card keeps its own words in surgery/source/README.md; only the tags are not taken over
    kept: dict[str, Any] = {}
    for key in ("license", "language"):
        value = found.get(key) if isinstance(found, dict) else None
        values = value if isinstance(value, list) else [value]
        if values and all(isinstance(entry, str) and _SAFE_TAG.fullmatch(entry) for entry in values):
            kept[key] = value
    return kept
