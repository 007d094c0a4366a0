"""The name that was meant."""

import pytest

from surgery.words import nearest

NAMES = ("screening", "ssmax", "rope")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("screning", "screening"),
        ("SSMAX", "ssmax"),
        ("ssmx", "ssmax"),
        ("ropes", "rope"),
        ("sreening", "screening"),
        ("rpoe", "rope"),
        ("attention", None),
        ("europeans", None),  # holds most of `rope`, and is not like it
    ],
)
def test_the_name_that_is_spelled_most_alike_is_found(given: str, meant: str | None) -> None:
    assert nearest(given, NAMES) == meant


def test_a_greater_likeness_can_be_asked_for() -> None:
    assert nearest("sreenin", NAMES) == "screening"
    assert nearest("sreenin", NAMES, least=0.8) is None
