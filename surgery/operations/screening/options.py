"""The options of screening."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from surgery.flag import NO_FLAG, Flag
from surgery.operations.base import Number
from surgery.operations.calibrated_options import CalibratedOptions, Value

FormName = Literal["gated", "unit"]
# Width of the ramp below a threshold, unless told otherwise.
SOFTNESS = 0.05
PARAMETERS = ("threshold", "softness", "log2_window")
# What the form ``unit`` has beside them: factors on the sum of values and on the length of the output, base 2.
UNIT_PARAMETERS = (*PARAMETERS, "log2_gain", "log2_bound")


class ScreeningOptions(CalibratedOptions):
    """Screening on the chosen layers and heads."""

    name: Literal["screening"] = "screening"
    form: FormName = Field(
        default="gated",
        description="gated: softmax over the accepted keys; unit: the screening unit, without softmax, replaces "
        "attention.",
    )
    keep_softmax: tuple[Number, ...] | None = Field(
        default=None, description="Instead of --layers: all full-attention layers except these: 0-3,7."
    )
    renormalisation: Annotated[float | None, Flag(absent="0, with --open 1")] = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Form unit: start value of the exponent between unit (0) and gated (1).",
    )
    sinks: int = Field(
        default=4, ge=0, le=1024, description="Number of first tokens of a document that are always kept."
    )
    full_window: Annotated[int | None, NO_FLAG] = Field(
        default=None,
        ge=1,
        le=2**31,
        description="A window of this many keys or more has no effect; by default the trained length.",
    )
    open: Annotated[bool, Flag(("--open",))] = Field(
        default=False, description="Start with all keys accepted, and train from there."
    )
    start: dict[str, Value] | None = Field(
        default=None,
        description="Start value of a parameter for all heads: threshold, softness, log2_window; with form unit also "
        "log2_gain, log2_bound (repeatable).",
    )

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what the form learns, one value per head each."""
        return UNIT_PARAMETERS if self.form == "unit" else PARAMETERS

    def resolved(self) -> dict[str, Any]:
        """As written into config.json: ``layers`` says which, and only ``unit`` has an exponent."""
        left_out = {"keep_softmax"} | ({"renormalisation"} if self.form == "gated" else set())
        return self.model_dump(mode="json", exclude=left_out)

    @model_validator(mode="after")
    def _consistent(self) -> ScreeningOptions:
        for name in self.start or {}:
            if name not in self.parameters:
                raise ValueError(
                    f"screening of form {self.form} has no parameter {name!r}; it has {', '.join(self.parameters)}"
                )
        if (self.start or {}).get("softness", 0.0) < 0:
            raise ValueError("softness must not be negative; 0 is hard")
        if self.keep_softmax is not None and self.layers != "full":
            raise ValueError("keep_softmax and layers exclude each other: both say which layers are screened")
        if self.renormalisation is not None and self.form != "unit":
            raise ValueError("renormalisation belongs to the form unit; gated always renormalises")
        if self.values is not None and (self.open or self.start):
            raise ValueError("values of a calibration exclude open and start")
        return self
