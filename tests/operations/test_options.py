"""Options as a user writes them: lists of layers, strict schemas, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.anatomy import Anatomy, read_anatomy
from surgery.checkpoint import open_checkpoint
from surgery.conversion.options import parse_operation
from surgery.errors import PlanRefusedError, UsageError
from surgery.operations import OPERATIONS, parse_layers
from surgery.zoo.manifest import ManifestError, read_manifest
from tests.anatomy.builders import LAYERS, bare_source

SSMAX = OPERATIONS["ssmax"]


def spelled(numbers: set[int], *, ranges: bool) -> str:
    """A list of numbers as text; with ``ranges`` every run of neighbours as one."""
    ordered = sorted(numbers)
    if not ranges:
        return " , ".join(map(str, reversed(ordered)))
    starts = [n for n in ordered if n - 1 not in numbers]
    ends = [n for n in ordered if n + 1 not in numbers]
    return ",".join(f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


@given(st.sets(st.integers(0, 10_000), min_size=1, max_size=40), st.booleans())
def test_parse_layers_reads_back_what_is_spelled(numbers: set[int], ranges: bool) -> None:
    assert parse_layers(spelled(numbers, ranges=ranges)) == tuple(sorted(numbers))


@given(st.text(max_size=20))
def test_parse_layers_gives_ascending_numbers_or_a_value_error(text: str) -> None:
    try:
        found = parse_layers(text)
    except ValueError:
        return
    assert found and list(found) == sorted(set(found)) and found[0] >= 0 and found[-1] <= 10_000


@pytest.mark.parametrize("text", ["", ",", "-", "1-", "-1", "3-1", "1,,2", "a", "1-2-3", "0-99999999999", "²", "1.5"])
def test_parse_layers_says_which_part_is_wrong(text: str) -> None:
    with pytest.raises(ValueError, match=r"is neither a number nor a range|is not an ascending range"):
        parse_layers(text)


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory: pytest.TempPathFactory) -> Anatomy:
    return read_anatomy(open_checkpoint(bare_source(tmp_path_factory.mktemp("bare") / "model")))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Anatomy:
    """Layers 0 and 2 slide."""
    folder = bare_source(tmp_path_factory.mktemp("bare") / "model", "gemma2", sliding_window=16)
    return read_anatomy(open_checkpoint(folder))


def resolve(anatomy: Anatomy, **options: Any) -> Any:
    return SSMAX.resolve(parse_operation({"name": "ssmax", **options}), anatomy)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("full", (1, 3)), ("sliding", (0, 2)), ("all", (0, 1, 2, 3)), ("2-3", (2, 3)), ([3, 0, 3], (0, 3))],
)
def test_layers_are_chosen_by_kind_or_number(mixed: Anatomy, layers: Any, expected: tuple[int, ...]) -> None:
    assert resolve(mixed, layers=layers).layers == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": [LAYERS]}, f"layer {LAYERS} does not exist"),
        ({"layers": []}, "no layer is chosen"),
        ({"heads": [32]}, "head 32 does not exist"),
        ({"heads": []}, "no head is chosen"),
        ({"layers": "sliding"}, "nothing to convert"),
    ],
)
def test_what_the_model_lacks_is_refused(anatomy: Anatomy, options: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanRefusedError, match=said):
        resolve(anatomy, **options)


WRONG: list[dict[str, Any]] = [
    {"layers": [-1]},
    {"heads": [-1]},
    {"layers": "some"},
    {"heads": "all"},
    {"form": "papier"},
    {"reference_length": 1},
    {"reference_length": 2**40},
    {"reference_length": "long"},
    {"start": {"scale": float("nan")}},
    {"start": {"scale": float("inf")}},
    {"start": {"scale": 1e300}},
    {"start": {"bias": 1.0}},
    {"form": "logn", "start": {"scale": 0.1}},
    {"scale": 0.1},
]


@pytest.mark.parametrize("options", WRONG)
def test_a_wrong_option_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_operation({"name": "ssmax", **options})
    assert any(name in caught.value.message for name in (*options, "scale", "bias"))
    assert "Traceback" not in caught.value.message and "pydantic" not in caught.value.message


@pytest.mark.parametrize("given", ["chunk", "full,sliding", "0-3,all"])
def test_words_for_layers_are_named_where_they_are_allowed(given: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_operation({"name": "ssmax", "layers": given})
    assert "neither a number nor a range like 0-3, nor one of full, sliding, chunked, all" in caught.value.message
    assert caught.value.message.count(repr(given)) == 1
    with pytest.raises(UsageError) as caught:
        parse_operation({"name": "ssmax", "heads": "all"})
    assert caught.value.message == "ssmax: heads: 'all' is neither a number nor a range like 0-3"


@pytest.mark.parametrize("given", ["foo", "0,foo"])
def test_a_fault_in_a_file_names_what_was_given_once(given: str) -> None:
    text = {"models": [{"path": "x"}], "operations": [{"name": "ssmax", "layers": given}], "output": "out"}
    with pytest.raises(ManifestError) as caught:
        read_manifest(text)
    (problem,) = caught.value.problems
    assert problem.message.startswith("'foo' is neither a number nor a range like 0-3, nor one of full, ")
    assert ", not " not in problem.message and problem.message.count("foo") == 1


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse_operation(
            {"name": "ssmax", "form": "papier", "layers": "a-b", "heads": [-3], "reference_length": 0, "zeal": 1}
        )
    for name in ("form", "layers", "heads", "reference_length", "zeal"):
        assert name in caught.value.message, name


def test_an_unknown_operation_lists_the_known() -> None:
    with pytest.raises(UsageError) as caught:
        parse_operation({"name": "softmin"})
    assert caught.value.hint == f"Known: {', '.join(OPERATIONS)}."


def test_resolved_options_are_read_back_as_they_are(mixed: Anatomy) -> None:
    """config.json holds every option, none left open, in the schema that a user writes."""
    resolved = resolve(mixed, form="bias", heads="0-3", start={"scale": 0.25})
    written = resolved.resolved()
    assert None not in written.values()
    assert parse_operation(written) == resolved
