"""The schema of a manifest, its faults, and the items that follow from it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import UsageError
from surgery.schemas.reference import reference
from surgery.zoo.items import expand
from surgery.zoo.manifest import EXAMPLE, Limits, Manifest, ManifestError, Model, Parallel, read_manifest
from surgery.zoo.quantities import format_duration, parse_duration, parse_size
from tests.anatomy.builders import bare_source

SMALL: dict[str, Any] = {"models": [{"path": "m"}], "operations": [{"name": "ssmax"}], "output": "out"}


def test_all_faults_at_once_with_lines_and_the_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "zoo.yaml"
    path.write_text("""\
model: [x]
models:
  - {path: a, hub: b}
  - path: c
    revison: main
  - path: d
    revision: main
    change:
      ssmax: {fom: bias}
      rope: {factor: 2}
operations:
  - {name: ssmax, form: anchord}
output: out
layout: "{nme}"
placement: hardlink
limits: {time: 5 parsecs, memory: 4 GB, mem: 3}
parallel: {items: 0}
verify: {layers: 0}
""")
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    found = {problem.path: (problem.line, problem.message) for problem in caught.value.problems}
    assert found["model"] == (1, "unknown key; did you mean `models`?")
    assert found["models.1.revison"] == (5, "unknown key; did you mean `revision`?")
    assert found["operations.0.form"][0] == 12 and "'anchord'" in found["operations.0.form"][1]
    assert found["layout"][0] == 14 and "the fields are name, org, operations, revision" in found["layout"][1]
    assert found["placement"][0] == 15 and "'hardlink'" in found["placement"][1]
    assert found["limits.time"][0] == 16 and "90s, 15m" in found["limits.time"][1]
    assert "memory" in found["limits.mem"][1]
    assert found["parallel.items"][0] == 17
    assert any(path.startswith("verify") for path in found)


def test_faults_between_keys_have_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "zoo.yaml"
    path.write_text("""\
models:
  - {path: a, hub: b}
  - path: d
    revision: main
    change:
      ssmax: {fom: bias}
      rope: {factor: 2}
  - path: e
    operations: [{name: ssmax}]
    change: {ssmax: {form: bias}}
operations:
  - {name: ssmax}
  - {name: ssmax, form: bias}
output: out
""")
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert [(problem.line, problem.path) for problem in caught.value.problems] == [
        (2, "models.0"),
        (4, "models.1.revision"),
        (6, "models.1.change.ssmax.fom"),
        (7, "models.1.change.rope"),
        (10, "models.2.change"),
        (11, "operations"),
    ]
    assert "did you mean `form`" in caught.value.problems[2].message


def test_a_wrong_value_is_shown_shortened(tmp_path: Path) -> None:
    """Ten thousand characters for each of several keys made messages that nobody reads."""
    path = tmp_path / "zoo.yaml"
    path.write_text(json.dumps({"output": "out", "models": [{"path": [["x" * 9000]]}], "parallel": [["y" * 9000]]}))
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert len(message) < 1000 and "[['xxx" in message and "(9,006 characters)" in message


def test_what_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no manifest file"):
        read_manifest(tmp_path / "zoo.yaml")
    (tmp_path / "zoo.yaml").write_text("- a\n")
    with pytest.raises(ManifestError, match="must contain keys"):
        read_manifest(tmp_path / "zoo.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("500 MB", 500_000_000), ("2GiB", 2 * 1024**3), ("1.5 kb", 1500), ("17", 17), ("3 B", 3)],
)
def test_sizes(text: str, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("1h30m", 5400), ("1.5 m", 90), ("2d", 172_800)])
def test_durations(text: str, value: float) -> None:
    assert parse_duration(text) == value
    assert parse_duration(5) == 5.0


@pytest.mark.parametrize("text", ["", "MB", "4 GBB", "1e3", "-3 MB", "4 G B"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        parse_size(text)


def test_durations_for_people() -> None:
    assert [format_duration(value) for value in (0.44, 42, 200, 7500)] == ["0.4 s", "42 s", "3 min 20 s", "2 h 05 min"]


def test_globs_overrides_and_names(tmp_path: Path) -> None:
    for name in ("b", "a", "special"):
        bare_source(tmp_path / "models" / name)
    (tmp_path / "models" / "a file").write_text("")
    manifest = read_manifest(
        {
            "models": [
                {"path": "models/?"},
                {"path": "models/special", "change": {"ssmax": {"form": "bias"}}, "verify": {"layers": 2}},
                {"hub": "org/name", "revision": "v1", "operations": [{"name": "ssmax", "form": "logn"}]},
                {"path": "models/missing", "name": "other"},
            ],
            "operations": [{"name": "ssmax", "layers": "0-1"}],
            "output": "out",
            "placement": "link",
        }
    )
    items = expand(manifest, tmp_path)
    assert [item.name for item in items] == ["a-ssmax", "b-ssmax", "special-ssmax", "name-ssmax", "other-ssmax"]
    assert items[0].operations == ({"name": "ssmax", "layers": [0, 1]},)
    assert items[2].operations == ({"name": "ssmax", "form": "bias", "layers": [0, 1]},)
    assert items[3].operations == ({"name": "ssmax", "form": "logn"},) and items[3].is_hub
    assert [item.layers for item in items] == [None, None, 2, None, None]
    assert items[0].output == tmp_path / "out" / "a-ssmax" and items[0].placement == "link"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"models": [{"path": "none/*"}]}, "matches no folder"),
        ({"models": [{"path": "models/*", "name": "x"}]}, "matches 2 folders"),
        ({"models": [{"path": "models/a"}, {"path": "models/*"}]}, "would both be written to a-ssmax"),
        ({"models": [{"hub": "x/m"}, {"hub": "y/M"}]}, "would both be written to"),
        ({"layout": "same"}, "would both be written to same"),
    ],
)
def test_manifests_that_cannot_be_run(change: dict[str, Any], part: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        bare_source(tmp_path / "models" / name)
    content = {**SMALL, "models": [{"path": "models/*"}], **change}
    with pytest.raises(UsageError, match=part):
        expand(read_manifest(content), tmp_path)


def test_a_pattern_is_no_longer_than_a_path(tmp_path: Path) -> None:
    """Python takes time that grows with the square of a pattern's length."""
    began = time.process_time()
    with pytest.raises(ManifestError, match=r"models\.0\.path.*4096"):
        expand(read_manifest({**SMALL, "models": [{"path": "[" * 40_000}]}), tmp_path)
    assert time.process_time() - began < 5


def test_outputs_are_never_models(tmp_path: Path) -> None:
    """A glob over the folder that also holds the output must not convert outputs again."""
    bare_source(tmp_path / "models" / "a")
    bare_source(tmp_path / "models" / "out" / "a-ssmax")
    items = expand(read_manifest({**SMALL, "models": [{"path": "models/**"}], "output": "models/out"}), tmp_path)
    assert [Path(item.source).name for item in items] == ["models", "a"]


def test_a_name_that_no_file_system_takes_costs_one_row(tmp_path: Path) -> None:
    bare_source(tmp_path / "models" / "con")
    bare_source(tmp_path / "models" / "a")
    items = expand(read_manifest({**SMALL, "models": [{"path": "models/*"}], "layout": "{name}"}), tmp_path)
    assert [item.fault is None for item in items] == [True, False]
    assert "device name" in str(items[1].fault)


def test_the_guide_has_the_example_and_the_reference_every_key(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "zoo.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", guide, flags=re.DOTALL)
    assert example == EXAMPLE
    (tmp_path / "zoo.yaml").write_text(example)
    assert len(read_manifest(tmp_path / "zoo.yaml").models) == 2
    page = reference(Manifest)
    for model in (Manifest, Model, Limits, Parallel):
        for key in model.model_fields:
            assert f"| `{key}` |" in page, key
