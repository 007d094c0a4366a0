"""The sources of tests/conversion, for runs with faults."""

from tests.conversion.conftest import make_kind

__all__ = ["make_kind"]
