"""The options of screening."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from surgery.operations.base import HeadOptions, Number

FormName = Literal["gated", "unit"]
PARAMETERS = ("threshold", "softness", "log2_window")
# What the form ``unit`` has beside them: factors on the sum of values and on the length of the output, base 2.
UNIT_PARAMETERS = (*PARAMETERS, "log2_gain", "log2_bound")
Value = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
# For each layer and parameter, one value per chosen head.
Values = Mapping[int, Mapping[str, tuple[Value, ...]]]


class ScreeningOptions(HeadOptions):
    """Screening on the chosen layers and heads.

    Attributes:
        form: ``gated`` keeps softmax over the keys that are accepted; ``unit`` is the paper's screening unit in place
            of attention.
        keep_softmax: in place of ``layers``: every full-attention layer but these.
        renormalisation: of ``unit``, the exponent p that it starts with: 0 is the unit, 1 is ``gated``; between the two
            lies the bridge that a recipe's ``bridge`` goes. By default 0, with ``open`` 1.
        sinks: so many first tokens of a document are always kept, by ``gated`` and on the bridge.
        full_window: a window of so many keys or more bounds nothing; by default the trained length.
        open: start with everything accepted, for training from there.
        start: start value of each parameter for all heads: threshold, softness, log2_window; of ``unit`` also log2_gain
            and log2_bound.
        values: start values per layer and head, from a calibration. They go into the tensors, not into config.json.
        calibration: SHA-256 of the calibration that they come from.
    """

    name: Literal["screening"] = "screening"
    form: FormName = "gated"
    keep_softmax: tuple[Number, ...] | None = None
    renormalisation: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    sinks: int = Field(default=4, ge=0, le=1024)
    full_window: int | None = Field(default=None, ge=1, le=2**31)
    open: bool = False
    start: dict[str, Value] | None = None
    values: Values | None = Field(default=None, exclude=True, repr=False)
    calibration: str | None = None

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
        if self.values is not None and self.calibration is None:
            raise ValueError("values need the hash of the calibration that they come from")
        for layer, found in (self.values or {}).items():
            if sorted(found) != sorted(self.parameters):
                raise ValueError(
                    f"values of layer {layer} must have {', '.join(self.parameters)}, not {', '.join(found)}"
                )
        return self
