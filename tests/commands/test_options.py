"""From flags to the options of several operations in one plan."""

from __future__ import annotations

import pytest

from surgery.commands.operation_flags import operations_from_flags
from surgery.errors import UsageError


def test_flags_go_to_the_operations_that_have_them() -> None:
    given = {"form": "paper", "reference_length": None, "layers": ["all"], "heads": ["ssmax=0-1"]}
    assert operations_from_flags(["ssmax"], given) == [
        {"name": "ssmax", "form": "paper", "layers": "all", "heads": "0-1"}
    ]


@pytest.mark.parametrize(
    ("names", "given", "said"),
    [
        (["softmin"], {}, "unknown operation 'softmin'"),
        (["ssmax", "ssmax"], {}, "'ssmax' is given twice"),
        (["ssmax"], {"layers": ["rope=all"]}, "'rope' is not among the chosen operations"),
        (["ssmax"], {"layers": ["all", "full"]}, "--layers is given twice"),
    ],
)
def test_what_fits_no_operation_is_refused(names: list[str], given: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        operations_from_flags(names, given)
