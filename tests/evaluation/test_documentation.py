"""docs/guide/evaluate.md: its suite is valid and names every key; its Python block uses the API as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from ruamel.yaml import YAML

from surgery.evaluation import Suite, read_suite
from surgery.evaluation.suite import Part

TEXT = (Path(__file__).parents[2] / "docs" / "guide" / "evaluate.md").read_text(encoding="utf-8")


def test_the_suite_names_every_key_and_kind() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    data = YAML(typ="safe", pure=True).load(block)
    assert [part.kind for part in read_suite(data).parts] == [part["kind"] for part in data["parts"]]
    named = {part["kind"]: set(part) for part in data["parts"]}
    assert set(data) == set(Suite.model_fields)
    for kind in get_args(Part):
        own = set(kind.model_fields) - named[get_args(kind.model_fields["kind"].annotation)[0]]
        assert own <= {"chunk"}, own  # shown once, with the loss
