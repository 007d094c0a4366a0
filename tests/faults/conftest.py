"""The sources of tests/conversion, disturbed."""

from tests.conversion.conftest import make_kind

__all__ = ["make_kind"]
