"""The start values of an operation that a calibration chose, with the record of the calibration."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from surgery.checkpoint import sha256_json
from surgery.result_table import ResultTable, ShownAsTable, record_table


class CalibrationRecord(ShownAsTable):
    """Start values from a calibration, for a plan; see :meth:`Operation.calibrated`.

    Attributes:
        model: the source model.
        warnings: for users.
    """

    model: str
    warnings: tuple[str, ...]

    @property
    @abstractmethod
    def operation(self) -> str:
        """The name of the operation that the values are for."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written into ``surgery/calibration.json``."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Options of the operation with these values."""

    @property
    def hash(self) -> str:
        """SHA-256 of the content."""
        return sha256_json(self.to_dict())

    def to_table(self) -> ResultTable:
        """What was chosen and what was found with it, in words."""
        from surgery.operations import OPERATIONS

        summary = OPERATIONS[self.operation].summarize_calibration(self.to_dict())
        notes = (summary.remark, *self.warnings)
        return record_table(f"calibration of {self.operation} for {self.model}", summary.facts, notes)
