"""The hooks of screening."""

from __future__ import annotations

import math

from surgery.anatomy import Anatomy, AttentionLayer
from surgery.errors import PlanRefusedError
from surgery.operations.base import Operation, PlannedTensor
from surgery.operations.screening.options import PARAMETERS, ScreeningOptions

# What a plan holds in place of a hash while its calibration has not been run.
PENDING = "pending"

SOFTNESS = 0.05


def open_start(full_window: int, softness: float = SOFTNESS) -> dict[str, float]:
    """Values at which a head accepts everything: t below -1 - tau, and a window that bounds nothing."""
    # A little above the logarithm, so that its power rounds to the full window or more in float32 too.
    return {"threshold": -1.05 - softness, "softness": softness, "log2_window": math.log2(full_window) + 0.01}


def is_open(values: dict[str, float], full_window: int) -> bool:
    """Whether a head with these values accepts every key."""
    window = max(1, round(2.0 ** values["log2_window"]))
    return values["threshold"] < -1 - max(0.0, values["softness"]) and window >= full_window


class Screening(Operation):
    """softmax(z) times alpha, over the keys that are accepted."""

    name = "screening"
    summary = "thresholds and windows per head, so that keys are really rejected"
    options = ScreeningOptions
    explanation = (
        "Screening rejects keys: rho = cos(q, k), after norms and RoPE, is held against a threshold t of the head, and "
        "the distance against its window. Softmax weights are multiplied by clamp((rho - t) / tau, 0, 1)^2 and "
        "renormalised over what survives; the first tokens of a document are always kept. It needs "
        '`attn_implementation="sdpa"`, `"flex_attention"` or `"eager"`; with others it stops with an error.'
    )

    def skipping(self, layer: AttentionLayer) -> str | None:
        """Sliding layers: they reject by distance already."""
        if layer.kind == "sliding":
            return f"its sliding window of {layer.window} keys rejects the rest already"
        return self.refusal(layer)

    def resolve(self, options: ScreeningOptions, anatomy: Anatomy) -> ScreeningOptions:
        """Fill in layers, the full window and start values."""
        layers = self.choose_layers(options, anatomy)
        self.check_heads(options, anatomy)
        full_window = options.full_window or anatomy.trained_length
        if options.values is None and options.calibration not in (None, PENDING):
            raise PlanRefusedError("a calibration is named, but its values are not given")
        if not (options.open or options.start or options.values or options.calibration == PENDING):
            raise PlanRefusedError(
                "screening has no thresholds: nothing was said of where they come from",
                hint="Give texts to choose them on (--calibrate 'texts/*.txt'), or --open to start with everything "
                "accepted and train from there.",
            )
        if options.values is not None:
            self._check_values(options, layers, anatomy)
        start = {**open_start(full_window), **(options.start or {})}
        if options.start and "softness" in options.start and "threshold" not in options.start:
            start["threshold"] = open_start(full_window, options.start["softness"])["threshold"]
        return options.model_copy(update={"layers": layers, "full_window": full_window, "start": start})

    def _check_values(self, options: ScreeningOptions, layers: tuple[int, ...], anatomy: Anatomy) -> None:
        assert options.values is not None
        size = anatomy.heads if options.heads is None else len(options.heads)
        if sorted(options.values) != sorted(layers):
            raise PlanRefusedError(
                f"the calibration is for layers {sorted(options.values)}, but layers {list(layers)} are chosen",
                hint="Calibrate again with the same --layers.",
            )
        for layer, found in options.values.items():
            wrong = [name for name in PARAMETERS if len(found[name]) != size]
            if wrong:
                raise PlanRefusedError(
                    f"the calibration holds {len(found[wrong[0]])} values of {wrong[0]} for layer {layer}, but "
                    f"{size} heads are chosen",
                    hint="Calibrate again with the same --heads.",
                )

    def tensors(self, options: ScreeningOptions, anatomy: Anatomy) -> tuple[PlannedTensor, ...]:
        """Threshold, softness and log2 of the window, each one vector over the chosen heads per layer."""
        assert options.start is not None
        size = anatomy.heads if options.heads is None else len(options.heads)
        return tuple(
            PlannedTensor(
                f"{anatomy.layers[layer].module}.{self.name}.{parameter}",
                (size,),
                options.start[parameter] if options.values is None else options.values[layer][parameter],
            )
            for layer in options.layers
            if isinstance(layer, int)
            for parameter in PARAMETERS
        )

    def identity(self, options: ScreeningOptions) -> str | None:
        """The identity where every head is open."""
        assert options.start is not None and options.full_window is not None
        if options.values is not None or options.calibration == PENDING:
            return None
        return "everywhere" if is_open(options.start, options.full_window) else None

    def describe(self, options: ScreeningOptions) -> str:
        """Form, sinks, and where the values come from."""
        if options.calibration == PENDING:
            values = "thresholds and windows to be calibrated"
        elif options.calibration is not None:
            values = f"thresholds and windows of calibration {options.calibration[:16]}"
        elif self.identity(options) is not None:
            values = "open: everything is accepted"
        else:
            values = "start " + ", ".join(f"{name} = {value:.6g}" for name, value in (options.start or {}).items())
        return f"form {options.form}, first {options.sinks} tokens kept, {values}"

    def warnings(self, options: ScreeningOptions, anatomy: Anatomy) -> tuple[str, ...]:
        """What a user should know of where it starts."""
        found = []
        if options.calibration == PENDING:
            found.append(
                "no calibration was run: this plan shows shapes; thresholds and windows come with a calibration"
            )
        elif self.identity(options) is not None:
            found.append("screening starts open: nothing is rejected until thresholds or windows are trained")
        sliding = [index for index in options.layers if anatomy.layers[int(index)].kind == "sliding"]
        if sliding:
            found.append(f"{len(sliding)} of the chosen layers slide: their first tokens leave the window")
        if not anatomy.family.sdpa:
            found.append("this family has no sdpa attention: screening runs through its dense attention")
        return tuple(found)
