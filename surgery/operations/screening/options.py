"""The options of screening."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from surgery.operations.base import HeadOptions

PARAMETERS = ("threshold", "softness", "log2_window")
Value = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
# For each layer and parameter, one value per chosen head.
Values = Mapping[int, Mapping[str, tuple[Value, ...]]]


class ScreeningOptions(HeadOptions):
    """Screening on the chosen layers and heads.

    Attributes:
        form: ``gated`` keeps softmax over the keys that are accepted.
        sinks: so many first tokens of a document are always kept.
        full_window: a window of so many keys or more bounds nothing; by default the trained length.
        open: start with everything accepted, for training from there.
        start: start value of each parameter for all heads: threshold, softness, log2_window.
        values: start values per layer and head, from a calibration. They go into the tensors, not into config.json.
        calibration: SHA-256 of the calibration that they come from.
    """

    name: Literal["screening"] = "screening"
    form: Literal["gated"] = "gated"
    sinks: int = Field(default=4, ge=0, le=1024)
    full_window: int | None = Field(default=None, ge=1, le=2**31)
    open: bool = False
    start: dict[str, Value] | None = None
    values: Values | None = Field(default=None, exclude=True, repr=False)
    calibration: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ScreeningOptions:
        for name in self.start or {}:
            if name not in PARAMETERS:
                raise ValueError(f"screening has no parameter {name!r}; it has {', '.join(PARAMETERS)}")
        if (self.start or {}).get("softness", 0.0) < 0:
            raise ValueError("softness must not be negative; 0 is hard")
        if self.values is not None and (self.open or self.start):
            raise ValueError("values of a calibration exclude open and start")
        if self.values is not None and self.calibration is None:
            raise ValueError("values need the hash of the calibration that they come from")
        for layer, found in (self.values or {}).items():
            if sorted(found) != sorted(PARAMETERS):
                raise ValueError(f"values of layer {layer} must have {', '.join(PARAMETERS)}, not {', '.join(found)}")
        return self
