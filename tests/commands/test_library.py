"""The package exports the function of each command, and imports it at the first use."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import surgery
from surgery.errors import SurgeryError, UsageError
from surgery.library import as_library, in_parameters
from surgery.result_table import ResultTable, ShownAsTable


def test_every_name_is_found_and_none_is_loaded_before() -> None:
    assert set(surgery.__all__) == {*surgery._HOMES, "__version__", "register"}
    for name in surgery.__all__:
        assert getattr(surgery, name) is not None
    assert dir(surgery) == sorted(surgery.__all__), "public names alone"
    with pytest.raises(AttributeError, match="murge"):
        _ = surgery.murge
    program = "import sys, surgery; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'peft')))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def example(
    model: str, *, output: str = "", length: int = 1, force: bool = False, text: tuple[str, ...] = (), run: Any = None
) -> None:
    raise UsageError("the output exists", hint="Choose another folder, or replace this one with --force.")


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("replace it with --force to go on", "replace it with force=True to go on"),
        ("--length 1: must be at least 2", "length=1: must be at least 2"),
        ("--text has no effect", "text has no effect"),
        ("Give texts: --text 'texts/*.txt'.", "Give texts: text='texts/*.txt'."),
        ("pass --output NAME", "pass output=NAME"),
        ("--device foo: no device has this name", "run=RunOptions(device='foo'): no device has this name"),
        ("--unknown 3 stays, and so does a word--force", "--unknown 3 stays, and so does a word--force"),
    ],
)
def test_a_flag_becomes_a_parameter(said: str, wanted: str) -> None:
    assert in_parameters(said, inspect.signature(example)) == wanted


def test_an_error_speaks_of_parameters() -> None:
    with pytest.raises(UsageError, match="replace this one with force=True"):
        as_library(example)("model")
    with pytest.raises(TypeError, match="Did you mean 'output'") as caught:
        as_library(example)("model", ouput="x")
    assert isinstance(caught.value, SurgeryError) and "no parameter 'ouput'" in str(caught.value)
    assert as_library(example).__doc__ == example.__doc__ and inspect.signature(as_library(example)).parameters["text"]


def test_every_exported_function_speaks_so(make_source: Any, tmp_path: Path) -> None:
    source = make_source("llama")
    surgery.convert(source, output=tmp_path / "out")
    with pytest.raises(UsageError, match=r"with force=True"):
        surgery.convert(source, output=tmp_path / "out")
    with pytest.raises(UsageError, match=r"unknown option; did you mean 'form'"):
        surgery.convert(source, "ssmax", output=tmp_path / "other", frm="paper")
    for name in surgery._HOMES:
        found = getattr(surgery, name)
        if not isinstance(found, type):
            assert found.__wrapped__ is not None and found.__name__ == name


def test_the_parameter_of_a_flag_with_another_name() -> None:
    with pytest.raises(TypeError, match="Did you mean 'overrides'"):
        surgery.finetune("tiny", set=["budget.steps=1"])
    with pytest.raises(TypeError, match="has no parameter 'xyz'\nIts parameters"):
        surgery.finetune("tiny", xyz=1)


def test_help_begins_with_what_there_is() -> None:
    import pydoc

    first = pydoc.plain(pydoc.render_doc(surgery)).partition("PACKAGE CONTENTS")[0]
    assert {name for name in surgery._HOMES if name[0].islower()} <= set(re.findall(r"\w+", first))


def test_a_result_is_a_table(make_source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspection = surgery.inspect(make_source("llama"))
    frame = inspection.to_frame()
    assert list(frame["layer"]) == [0, 1, 2] and list(frame["ssmax"]) == ["applies"] * 3
    assert str(inspection).count("applies") == inspection._repr_html_().count("<td>applies</td>") == 9
    converted = surgery.convert(make_source("llama"), output=tmp_path / "out")
    assert "form anchored" in str(converted) and "<table>" in converted._repr_html_()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        inspection.to_frame()


def test_every_result_has_a_table(make_source: Any, tmp_path: Path) -> None:
    """Of each exported function the class that it returns, by its annotation."""
    for name in sorted({*surgery._HOMES} - {"RunOptions", "CalibrationSettings", "Sweep", "make_plan", "calibrate"}):
        found = getattr(surgery, name).__wrapped__
        for returned in found.__annotations__["return"].split(" | "):
            one = vars(sys.modules[found.__module__])[returned]
            assert issubclass(one, ShownAsTable), f"{name} returns {one.__name__}"
            assert one.to_table is not ShownAsTable.to_table, one.__name__
    converted = surgery.convert(make_source("llama"), "ssmax", output=tmp_path / "out").output
    reverted = surgery.revert(converted, output=tmp_path / "back")
    assert dict(reverted.to_table().rows)["output"] == str(tmp_path / "back")
    assert "placed model.safetensors" in dict(reverted.to_table().rows) and "RevertResult(" not in str(reverted)
    refreshed = surgery.refresh(converted)
    assert dict(refreshed.to_table().rows)["changed"] is False and "<table>" in refreshed._repr_html_()
    made = surgery.new("softmax", tmp_path / "new", vocab_size=50, layers=1, width=32, heads=2, length=32)
    assert dict(made.to_table().rows)["options layers"] == 1 and str(tmp_path / "new") in str(made)


def test_a_zoo_is_a_table(make_source: Any, tmp_path: Path) -> None:
    manifest = tmp_path / "zoo.yaml"
    manifest.write_text(f"models: [{{path: {make_source('llama')}}}]\noutput: made\noperations:\n  - name: ssmax\n")
    zoo = surgery.open_zoo(manifest)
    table = zoo.to_table()
    assert table.notes == ("1 waiting",) and len(table.rows) == 1
    assert table.rows[0][1:3] == ("ssmax", "waiting") and str(zoo) == str(zoo.summary()) == table.text()
    assert zoo.summary()["counts"]["waiting"] == 1


def test_a_table_escapes_and_aligns() -> None:
    table = ResultTable("<b>", ("name", "loss"), (("<i>\x1b", 2.5), ("b", None), ("c", -1e-9)), ("first", "last"))
    assert "<b>" not in table.html() and "&lt;b&gt;" in table.html() and "<i>" not in table.html()
    lines = table.text(60).splitlines()
    assert lines[0] == "first" and lines[-1] == "last" and "[bold]" not in table.text()
    assert "2.5000" in table.text() and "-0.0000" not in table.text() and "\x1b" not in table.text()
    assert table.frame()["loss"].iloc[2] == -1e-9, "numbers are not rounded"


def test_editors_know_the_types() -> None:
    """The marker of types is in the package, and type checkers see every name that is exported."""
    source = Path(surgery.__file__)
    assert source.with_name("py.typed").is_file()
    block = source.read_text(encoding="utf-8").split("if TYPE_CHECKING:")[1].split("# Imported on first use")[0]
    imported = [line.split(" import ")[1] for line in block.splitlines() if " import " in line]
    assert {name.strip() for names in imported for name in names.split(",")} == set(surgery._HOMES)
