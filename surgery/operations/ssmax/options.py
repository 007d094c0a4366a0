"""The options of SSMax, and the forms of its multiplier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from surgery.errors import PlanRefusedError
from surgery.flag import Flag
from surgery.operations.base import LAYERS, LayerWord, Number
from surgery.operations.calibrated_options import CalibratedOptions

FormName = Literal["anchored", "paper", "bias", "logn", "constant", "none"]
OutputName = Literal["unchanged", "gain"]
# The range of float32, in which it is stored.
StartValue = Annotated[float, Field(ge=-3.4e38, le=3.4e38, allow_inf_nan=False)]


@dataclass(frozen=True)
class Form:
    """One form of the multiplier m(n): its equation, its parameters, and the start values with m = 1 for every n.

    ``has_reference`` is False for a form that has no N.
    """

    equation: str
    parameters: tuple[str, ...]
    remark: str
    identity: Mapping[str, float] | None = None
    has_reference: bool = True


FORMS: MappingProxyType[FormName, Form] = MappingProxyType(
    {
        "anchored": Form(
            "1 + s (ln n - ln N)",
            ("scale",),
            "starts as exactly the source model; s = 1/ln N is the paper's form",
            MappingProxyType({"scale": 0.0}),
        ),
        "paper": Form("s ln n", ("scale",), "the paper's form; differs from the source model until it is trained"),
        "bias": Form(
            "s ln n + b",
            ("scale", "bias"),
            "the paper's form (d); starts as exactly the source model",
            MappingProxyType({"scale": 0.0, "bias": 1.0}),
        ),
        "logn": Form("max(1, ln n / ln N)", (), "no learned parameters; equals the source model up to N keys"),
        "constant": Form(
            "b",
            ("bias",),
            "one temperature per head, the same for every n",
            MappingProxyType({"bias": 1.0}),
            has_reference=False,
        ),
        "none": Form("1", (), "no multiplier; for gains of outputs alone", MappingProxyType({}), has_reference=False),
    }
)
# The parameter of a gain of outputs, and its start value.
GAIN: Mapping[str, float] = MappingProxyType({"gain": 1.0})

# What a calibration chooses numbers for unless told otherwise: both can be merged into the weights, and neither depends
# on n, which a window bounds.
CALIBRATED: Mapping[str, str] = MappingProxyType({"form": "constant", "outputs": "gain", "layers": "all"})


def check_can_calibrate(options: SSMaxOptions) -> None:
    """Check that a form can be calibrated: it starts as the source model, and has a number to choose.

    Raises:
        PlanRefusedError: it does not.
    """
    if not options.parameters or options.identity is None:
        *able, last = (other for other, form in FORMS.items() if form.identity)
        reason = "does not start as the source model" if options.parameters else "has no parameter"
        raise PlanRefusedError(
            f"the form {options.form} cannot be calibrated: it {reason}", hint=f"Choose {', '.join(able)} or {last}."
        )


class SSMaxOptions(CalibratedOptions):
    """SSMax on the chosen layers and heads."""

    name: Literal["ssmax"] = "ssmax"
    layers: Annotated[LayerWord | tuple[Number, ...], Flag(absent=f"full, with --calibrate {CALIBRATED['layers']}")] = (
        Field(default="full", description=LAYERS)
    )
    form: Annotated[FormName, Flag(absent=f"anchored, with --calibrate {CALIBRATED['form']}")] = Field(
        default="anchored",
        description="Multiplier m(n). anchored: 1 + s (ln n - ln N), the source model at the start; paper: s ln n; "
        "bias: s ln n + b; logn: max(1, ln n / ln N), no parameters; constant: b, the same for every n; none: 1.",
    )
    outputs: Annotated[OutputName, Flag(absent=f"unchanged, with --calibrate {CALIBRATED['outputs']}")] = Field(
        default="unchanged",
        description="Output of a head. gain: times a learned g, the same for every n; unchanged.",
    )
    reference_length: Annotated[int | None, Flag(("--reference-length", "-N"), absent="the trained length")] = Field(
        default=None,
        ge=2,
        le=2**31,
        description="N of the multiplier, a number of keys; the multiplier of anchored is 1 at n = N.",
    )
    start: Annotated[dict[str, StartValue] | None, Flag(absent="the identity; for paper 1 / mean ln n")] = Field(
        default=None, description="Start value of a parameter: scale=0.1, bias=1, gain=1 (repeatable)."
    )

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what is learned, one value per head each."""
        return (*FORMS[self.form].parameters, *(GAIN if self.outputs == "gain" else ()))

    @property
    def identity(self) -> Mapping[str, float] | None:
        """The start values with which nothing changes; None if no values do that."""
        own = FORMS[self.form].identity
        return None if own is None else {**own, **(GAIN if self.outputs == "gain" else {})}

    def resolved(self) -> dict[str, Any]:
        """As written into config.json: ``calibration`` only where there was one, ``outputs`` where they change."""
        left_out = {"calibration": self.calibration is None, "outputs": self.outputs == "unchanged"}
        return self.model_dump(mode="json", exclude={name for name, absent in left_out.items() if absent})

    @model_validator(mode="after")
    def _start_fits_form(self) -> SSMaxOptions:
        for name in self.start or {}:
            if name not in self.parameters:
                has = ", ".join(self.parameters) or "none"
                raise ValueError(f"the form {self.form!r} has no parameter {name!r}; it has {has}")
        if self.form == "none" and self.outputs == "unchanged":
            raise ValueError("the form 'none' without a gain of outputs changes nothing")
        if self.reference_length is not None and not FORMS[self.form].has_reference:
            raise ValueError(f"the form {self.form!r} is the same at every length; leave reference_length out")
        return self


class InitialOptions(BaseModel):
    """SSMax in a new model. The paper's forms only: the others start as the model that they are applied to."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    form: Literal["paper", "bias"] = Field(
        default="paper", description="Multiplier of the query. paper: s ln n; bias: s ln n + b."
    )
    start: Annotated[
        dict[str, StartValue] | None, Flag(absent="scale=1 / mean ln n over the length; for bias scale=0, bias=1")
    ] = Field(default=None, description="Start value of a parameter of the form: scale=0.1, bias=1 (repeatable).")
