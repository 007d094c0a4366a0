"""The hooks of screening."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from surgery.anatomy import Anatomy, AttentionLayer, Family
from surgery.errors import PlanRefusedError, UsageError
from surgery.operations.base import CalibrationSummary, Operation, OperationOptions, PlannedTensor
from surgery.operations.calibrated_options import PENDING
from surgery.operations.measured import ObservedRows
from surgery.operations.screening.calibration_settings import ALLOWED, CalibrationSettings, calibration_passes
from surgery.operations.screening.options import SOFTNESS, ScreeningOptions
from surgery.operations.screening.sections import Bridge, Softness, Sparsity
from surgery.operations.screening.settings_check import check_settings
from surgery.operations.training import RecipeSection, StageHooks
from surgery.operations.tried import TrialCandidate

if TYPE_CHECKING:
    from torch import nn

# The options that a calibration is made for.
_CALIBRATED = ("form", "renormalisation", "layers", "heads", "sinks", "full_window")

# Of the form unit where nothing was calibrated: a sum over some sixteen keys, bounded at a length of 4.
UNIT_START = {"log2_gain": -4.0, "log2_bound": 2.0}


def open_start(full_window: int, softness: float = SOFTNESS) -> dict[str, float]:
    """Values at which a head accepts everything: t below -1 - tau, and a window that bounds nothing."""
    # A little above the logarithm, so that its power rounds to the full window or more in float32 too.
    return {"threshold": -1.05 - softness, "softness": softness, "log2_window": math.log2(full_window) + 0.01}


def is_open(values: dict[str, float], full_window: int) -> bool:
    """Whether a head with these values accepts every key."""
    # A window is a whole number of keys; 2^40 is more than any full window, and greater powers overflow.
    window = max(1.0, 2.0 ** min(values["log2_window"], 40.0))
    return values["threshold"] < -1 - max(0.0, values["softness"]) and window >= full_window - 0.5


class ScreeningOperation(Operation):
    """softmax(z) times alpha, over the keys that are accepted; or alpha alone."""

    name = "screening"
    title = "screening"
    summary = "thresholds and windows per head, so that keys are really rejected"
    options = ScreeningOptions
    calibrates = True
    calibration_settings = CalibrationSettings
    swept = ALLOWED
    needed_options = "--calibrate TEXTS (or --open, to train from there)"
    # Screening that starts open is still open a little further on, so these ranges lie where it rejects keys.
    test_ranges = MappingProxyType({"threshold": (-0.3, 0.3), "softness": (0.05, 0.3), "log2_window": (2.0, 6.0)})
    # Its start value says how far the unit is from softmax.
    constants = ("renormalisation",)
    learns = "screening's thresholds"
    recipe_sections = MappingProxyType(
        {
            "sparsity": RecipeSection(
                Sparsity, "Share of keys that screening shall reject in this stage.", changes_model=True
            ),
            "softness": RecipeSection(Softness, "Schedule of screening's softness in this stage."),
            "bridge": RecipeSection(
                Bridge, "Schedule of the exponent of screening units in this stage.", changes_model=True
            ),
        }
    )
    explanation = (
        "Screening rejects keys: rho = cos(q, k), after norms and RoPE, is held against a threshold t of the head, and "
        "the distance against its window. Softmax weights are multiplied by clamp((rho - t) / tau, 0, 1)^2 and "
        "renormalised over what survives; the first tokens of a document are always kept. It needs "
        '`attn_implementation="sdpa"`, `"flex_attention"` or `"eager"`; with others it stops with an error.'
    )
    explanation_of_unit = (
        "The screening unit replaces attention in these layers: rho = cos(q, k), after norms and RoPE, is compared "
        "with a threshold t of the head; values are summed with the weights clamp((rho - t) / (1 - t), 0, 1)^2 times a "
        "cosine of the distance that ends at the head's window. There is no softmax and no renormalisation; a gain of "
        "the head and tanh(|y| / bound) of the length of the sum set the size of the output. (While `renormalisation` "
        "is above 0, the layer is between unit and softmax.) Additions of the family to its scores have no effect. The "
        'unit runs with `attn_implementation="sdpa"`, `"flex_attention"` or `"eager"`; with others it stops with an '
        "error."
    )

    def family_refusal(self, family: Family) -> str | None:
        """Also a family with learned sinks."""
        if family.sinks:
            return "learned sinks take part in its softmax, which screening does not count"
        return super().family_refusal(family)

    def reason_to_skip(self, layer: AttentionLayer, anatomy: Anatomy) -> str | None:
        """Sliding and chunked layers: they reject by distance already."""
        if reason := self.refusal(layer):
            return reason
        if layer.kind == "sliding":
            return f"its sliding window of {layer.window} keys rejects the rest already"
        if layer.kind == "chunked":
            return f"its chunks of {layer.window} keys reject the rest already"
        return None

    def resolve(self, options: ScreeningOptions, anatomy: Anatomy) -> ScreeningOptions:
        """Fill in layers, the full window and start values."""
        layers = self._layers(options, anatomy)
        self.check_heads(options, anatomy)
        full_window = options.full_window or anatomy.trained_length
        options.check_values(layers, anatomy)
        if not (options.open or options.start or options.values or options.calibration == PENDING):
            raise PlanRefusedError(
                "screening has no thresholds",
                hint="Pass --calibrate 'texts/*.txt' to choose them on texts, --calibration FILE to take them from an "
                "earlier calibration, or --open to start with all keys accepted and train from there.",
            )
        start = {**open_start(full_window), **(options.start or {})}
        if options.start and "softness" in options.start and "threshold" not in options.start:
            start["threshold"] = open_start(full_window, options.start["softness"])["threshold"]
        changed = {"layers": layers, "full_window": full_window, "start": start, "keep_softmax": None}
        if options.form == "unit":
            changed["start"] = {**UNIT_START, **start}
            changed["renormalisation"] = options.renormalisation
            if options.renormalisation is None:
                changed["renormalisation"] = 1.0 if options.open else 0.0
            told = "sinks" in options.model_fields_set and options.calibration in (None, PENDING)
            if told and changed["renormalisation"] == 0:
                raise PlanRefusedError(
                    "sinks has no effect in a screening unit, which treats the first keys like all others",
                    hint="Leave it out, or start on the bridge with renormalisation above 0.",
                )
        return options.model_copy(update=changed)

    def _layers(self, options: ScreeningOptions, anatomy: Anatomy) -> tuple[int, ...]:
        layers = self.choose_layers(options, anatomy)
        if options.keep_softmax is None:
            return layers
        beyond = [index for index in options.keep_softmax if index >= len(anatomy.layers)]
        if beyond:
            raise PlanRefusedError(
                f"layer {beyond[0]} of keep_softmax does not exist; the model has layers 0-{len(anatomy.layers) - 1}"
            )
        left = tuple(layer for layer in layers if layer not in options.keep_softmax)
        if not left:
            raise PlanRefusedError("nothing to convert: every full-attention layer keeps its softmax")
        return left

    def tensors(self, options: ScreeningOptions, anatomy: Anatomy) -> tuple[PlannedTensor, ...]:
        """Each parameter of the form, and the exponent of ``unit``: one vector over the chosen heads per layer."""
        assert options.start is not None
        exponent = options.renormalisation
        constants = {} if exponent is None else {"renormalisation": exponent}
        return options.planned_tensors(self.name, anatomy, options.start, constants)

    def identity(self, options: ScreeningOptions) -> str | None:
        """The identity where every head is open, and has its softmax."""
        assert options.start is not None and options.full_window is not None
        if options.values is not None or options.calibration == PENDING or options.renormalisation not in (None, 1.0):
            return None
        return "everywhere" if is_open(options.start, options.full_window) else None

    def conflict(self, options: ScreeningOptions, other: Operation, other_options: OperationOptions) -> str | None:
        """A multiplier of the query acts on softmax, and a screening unit has none."""
        if options.form != "unit" or not other.multiplies_queries:
            return None
        both = sorted(set(map(int, options.layers)) & set(map(int, other_options.layers)))
        if not both:
            return None
        return f"layer {both[0]} is a screening unit, which has no softmax for {other.name} to scale"

    def unfinished(self, options: ScreeningOptions) -> str | None:
        """A plan that was made in place of a calibration."""
        if options.calibration == PENDING:
            return "the plan shows shapes only: its thresholds and windows need a calibration"
        return None

    def summarize_calibration(self, record: Mapping[str, Any]) -> CalibrationSummary:
        """What is saved, what it costs, and windows and thresholds by layer."""
        from surgery.operations.screening.summary import summarize

        return summarize(record)

    def calibration_passes(
        self,
        settings: CalibrationSettings,
        options: Mapping[str, Any],
        anatomy: Anatomy,
        choices: int | None = None,
    ) -> list[tuple[int, float]]:
        """Observing, and measuring each choice."""
        settings = settings.suited(str(options.get("form")))
        check_settings(settings, options)
        return calibration_passes(settings, anatomy, choices)

    def uncalibrated(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """With a mark in place of the hash of a calibration."""
        for name in ("start", "open"):
            if given.get(name):
                raise UsageError(
                    f"{name} has no effect: the calibration chooses the start values", hint="Leave it out."
                )
        return {**given, "calibration": PENDING}

    def options_to_calibrate(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Form, layers, heads, sinks and the full window."""
        own = {name: options[name] for name in _CALIBRATED if name in options}
        if own.get("renormalisation") == 0:
            del own["sinks"]  # a unit keeps none
        return own

    def calibrated(self, given: Mapping[str, Any], calibration: Any) -> Mapping[str, Any]:
        """Every option that was given must be the one that was calibrated with, or have been resolved in it."""
        own: dict[str, Any] = calibration.options()
        left = dict(given)
        if "keep_softmax" in given:
            kept = ScreeningOptions.model_validate({"open": True, "keep_softmax": given["keep_softmax"]}).keep_softmax
            if not set(own["layers"]) & set(kept or ()):
                del left["keep_softmax"]  # the calibration has resolved the layers
        ScreeningOptions.check_given(left, own, form=own["form"], open=True)
        # With layers that keep their softmax, the calibration's are not those of the word.
        return own if "keep_softmax" in given else {**own, **ScreeningOptions.layer_word(given)}

    def explain(self, options: ScreeningOptions) -> str:
        """By the form."""
        return self.explanation_of_unit if options.form == "unit" else self.explanation

    def describe(self, options: ScreeningOptions) -> str:
        """Form, sinks, and where the values come from."""
        if options.calibration == PENDING:
            values = "thresholds and windows not calibrated yet"
        elif options.calibration is not None:
            values = f"thresholds and windows of calibration {options.calibration[:16]}"
        elif self.identity(options) is not None:
            values = "open: all keys are accepted"
        else:
            values = "start " + ", ".join(f"{name} = {value:.6g}" for name, value in (options.start or {}).items())
        exponent = options.renormalisation
        if exponent == 0:
            return f"form {options.form}, {values}"
        between = "" if exponent is None else f" with renormalisation {exponent:g}"
        return f"form {options.form}{between}, first {options.sinks} tokens kept, {values}"

    def known_start(self, options: Mapping[str, Any]) -> dict[str, float]:
        """None where a calibration chose the values, which differ by head."""
        return {} if options.get("calibration") is not None else super().known_start(options)

    def observed(self, module: Any, show: Callable[[ObservedRows], None]) -> AbstractContextManager[None] | None:
        """The weights of the keys that are kept."""
        if not module.enabled:
            return None
        from surgery.operations.screening.kept_weights import observed_weights

        return observed_weights(module, show)

    def warnings(self, options: ScreeningOptions, anatomy: Anatomy) -> tuple[str, ...]:
        """What a user should know of where it starts."""
        found = []
        if options.calibration == PENDING:
            found.append("this plan shows shapes only: a calibration will set thresholds and windows")
        elif self.identity(options) is not None:
            found.append("screening starts open: nothing is rejected until thresholds or windows are trained")
        if options.form == "unit" and options.renormalisation != 1:
            found.append(
                "a screening unit is not attention: the model is worse than the source until it is distilled "
                "(recipe screening-unit)"
            )
        sliding = [index for index in options.layers if anatomy.layers[int(index)].kind == "sliding"]
        if sliding:
            found.append(f"{len(sliding)} of the chosen layers have a sliding window: the first tokens leave it")
        chunked = [index for index in options.layers if anatomy.layers[int(index)].kind == "chunked"]
        if chunked and options.form == "gated":
            found.append(f"{len(chunked)} of the chosen layers are chunked: the first tokens of each are kept")
        if not anatomy.family.sdpa:
            found.append("this family has no sdpa attention: screening runs through its dense attention")
        return tuple(found)

    def changes_nothing(self, options: ScreeningOptions, values: Mapping[str, Sequence[float]]) -> bool:
        """Every head is open, and has its softmax."""
        assert options.full_window is not None
        names = ("threshold", "softness", "log2_window")
        heads = zip(*(values[name] for name in names), strict=True)
        return all(exponent == 1 for exponent in values.get("renormalisation", ())) and all(
            is_open(dict(zip(names, head, strict=True)), options.full_window) for head in heads
        )

    def effective_values(self, module: Any) -> tuple[Any, tuple[Any, ...]]:
        """A threshold that rejects every key that may be rejected, and one that rejects none."""
        return module.threshold, (0.95, -3.0)

    def check_sections(self, sections: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """``bridge`` needs units to lead to, and ``softness`` has no effect in a unit."""
        if "bridge" in sections and options.get("form") != "unit":
            raise PlanRefusedError(
                "bridge leads to screening units; the model has screening of form gated, which has no gain and no "
                "bound",
                hint="Leave bridge out, or convert with --form unit --renormalisation 1, which starts as gated.",
            )
        by_windows = "sparsity" in sections and sections["sparsity"].save != "keys"
        if by_windows and options.get("form") == "unit":
            raise PlanRefusedError(
                f"sparsity by {sections['sparsity'].save} trains windows alone, and a screening unit needs thresholds",
                hint="Set sparsity.save to keys.",
            )
        if by_windows and "softness" in sections:
            raise PlanRefusedError(
                f"softness is that of thresholds, and sparsity by {sections['sparsity'].save} trains windows alone",
                hint="Leave softness out.",
            )
        if "softness" in sections and "bridge" not in sections and options.get("renormalisation") == 0:
            raise PlanRefusedError(
                "softness has no effect in a screening unit, whose ramp always ends at 1 - t",
                hint="Leave softness out.",
            )

    def unlearned(self, sections: Mapping[str, Any]) -> Collection[str]:
        """The exponent of units always, softness where a schedule sets it; all but windows where they alone cost."""
        if "sparsity" in sections and sections["sparsity"].save != "keys":
            return ("renormalisation", "threshold", "softness")
        return ("renormalisation", "softness") if "softness" in sections else ("renormalisation",)

    def stage_hooks(
        self, model: nn.Module, modules: Mapping[int, Any], sections: Mapping[str, Any], layers: Collection[int]
    ) -> StageHooks | None:
        """The price of accepted keys, and the schedules."""
        from surgery.operations.screening.training import ScreeningHooks

        return ScreeningHooks(model, modules, sections, layers) if modules else None

    def trial_candidates(self) -> tuple[TrialCandidate, ...]:
        """Windows chosen for the smallest cache; and one window for all heads with as large a cache, their control."""
        return (
            TrialCandidate(
                "windows",
                "a window for each key-value head, chosen for a small cache",
                {"name": "screening"},
                "memory",
                control="equal-windows",
            ),
            TrialCandidate(
                "equal-windows",
                "the same window for every head, with as large a cache",
                {},
                "memory",
                derived_from="windows",
            ),
        )

    def trial_settings(self, length: int, effort: float) -> CalibrationSettings:
        """Fewer passages."""
        most = CalibrationSettings()
        return CalibrationSettings(
            save="memory",
            context=length,
            lengths=(length // 4, length),
            observe=max(4, round(effort * most.observe)),
            hold_out=most.hold_out,
        )

    def trial_passes(self, settings: CalibrationSettings, anatomy: Anatomy, number: int) -> list[tuple[int, float]]:
        """As of every calibration."""
        return calibration_passes(settings, anatomy)

    def kept_cache(self, calibration: Any, anatomy: Anatomy, tokens: int) -> float:
        """By the windows."""
        from surgery.operations.screening.savings import savings

        (found,) = savings(calibration.layers, anatomy, calibration.settings, [tokens])
        return float(found["cache"])

    def derived_options(self, calibration: Any, anatomy: Anatomy, tokens: int) -> Mapping[str, Any]:
        """One window, with which the cache of the same layers has as many bytes."""
        from surgery.operations.screening.savings import group_windows, kept_keys

        settings = calibration.settings
        windows = group_windows(calibration.layers, anatomy, settings["heads"], settings["full_window"])
        sizes = {layer: anatomy.layers[layer].head_dim for layer in windows}
        kept = sum(
            kept_keys(own, tokens, settings["sinks"]) * sizes[layer] for layer in windows for own in windows[layer]
        )
        every = sum(sizes[layer] * len(own) for layer, own in windows.items())
        window = max(1, math.floor(kept / every) - settings["sinks"])
        return {
            "name": self.name,
            "layers": tuple(windows),
            "sinks": settings["sinks"],
            "start": {"log2_window": math.log2(window) + 1e-4},
        }
