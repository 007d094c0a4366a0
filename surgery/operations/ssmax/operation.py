"""The hooks of SSMax."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from surgery.anatomy import Anatomy, AttentionLayer, Family
from surgery.errors import PlanRefusedError, UsageError
from surgery.operations.base import CalibrationSummary, HeadFactors, Operation, PlannedTensor
from surgery.operations.calibrated_options import PENDING
from surgery.operations.ssmax.calibration_settings import SSMaxCalibrationSettings
from surgery.operations.ssmax.options import CALIBRATED, FORMS, GAIN, InitialOptions, SSMaxOptions, check_can_calibrate
from surgery.operations.ssmax.sections import Identity
from surgery.operations.training import RecipeSection, StageHooks
from surgery.operations.tried import TrialCandidate

if TYPE_CHECKING:
    from torch import nn

    from surgery.operations.check import Check, CheckedModel
    from surgery.operations.learned_numbers import LearnedNumbers

# The options that a calibration is made for.
_CALIBRATION_OPTIONS = ("form", "outputs", "reference_length", "layers", "heads")


def mean_log(length: int) -> float:
    """Mean of ln n over n = 1..length, which is ln(length!) / length. The paper starts at its inverse (section 4)."""
    return math.lgamma(length + 1) / length


def _most_keys(layers: Sequence[int], anatomy: Anatomy) -> int:
    """The largest n that the layers were trained with; in a sliding or chunked layer it is the window."""
    longest = anatomy.trained_length
    return max(min(anatomy.layers[layer].window or longest, longest) for layer in layers)


class SSMaxOperation(Operation):
    """softmax(m(n) z) in place of softmax(z), computed as a multiplier of the query."""

    name = "ssmax"
    title = "SSMax"
    summary = "a learned scale per head times ln n, so that attention does not fade with length"
    options = SSMaxOptions
    initial_options = InitialOptions
    calibrates = True
    calibration_settings = SSMaxCalibrationSettings
    multiplies_queries = True
    learns = "SSMax's scale"
    recipe_sections = MappingProxyType(
        {"identity": RecipeSection(Identity, "Penalty on multipliers that leave 1, in this stage.")}
    )
    explanation = (
        "n is the number of keys that a query may attend to. SSMax computes softmax(m(n) z) "
        "([arXiv 2501.19399](https://arxiv.org/abs/2501.19399)) as `query * m(n)`, before the configured attention "
        "backend."
    )

    def family_caveats(self, family: Family) -> tuple[str, ...]:
        """The family itself scales the queries of some layers."""
        if family.scales is None:
            return ()
        return (f"{self.name} is refused on the layers whose queries the family already scales by the position",)

    def refusal(self, layer: AttentionLayer) -> str | None:
        """Also refuse a layer whose queries the family already scales: a second multiplier would act on top."""
        if layer.scaled:
            return "the family already scales the queries of this layer by the position"
        return super().refusal(layer)

    def reason_to_skip(self, layer: AttentionLayer, anatomy: Anatomy) -> str | None:
        """Skip layers whose n is bounded, where a multiplier that grows with n has little effect."""
        if reason := self.refusal(layer):
            return reason
        if layer.kind == "sliding":
            return f"n saturates at the sliding window of {layer.window} keys"
        if layer.kind == "chunked":
            return f"n starts again at every chunk of {layer.window} keys"
        return None

    def resolve(self, options: SSMaxOptions, anatomy: Anatomy) -> SSMaxOptions:
        """Fill in layers, N and start values."""
        layers = self.choose_layers(options, anatomy)
        self.check_heads(options, anatomy)
        options.check_values(layers, anatomy)
        most = _most_keys(layers, anatomy)
        form = FORMS[options.form]
        reference = options.reference_length or most
        if form.has_reference and reference < 2:
            raise PlanRefusedError(f"the reference length must be at least 2, not {reference}")
        if options.form == "logn" and most < anatomy.trained_length and reference >= most:
            raise PlanRefusedError(
                f"logn with N = {reference} has no effect: a query of the chosen layers sees at most {most} keys",
                hint=f"Pass --reference-length with a value below {most}, or choose another form.",
            )
        default = {
            "anchored": {"scale": 0.0},
            "paper": {"scale": 1.0 / mean_log(reference)},
            "bias": {"scale": 0.0, "bias": 1.0},
            "logn": {},
            "constant": {"bias": 1.0},
            "none": {},
        }[options.form]
        if options.outputs == "gain":
            default = {**default, **GAIN}
        return options.model_copy(
            update={
                "layers": layers,
                "reference_length": reference if form.has_reference else None,
                "start": {**default, **(options.start or {})},
            }
        )

    def tensors(self, options: SSMaxOptions, anatomy: Anatomy) -> tuple[PlannedTensor, ...]:
        """One vector over the chosen heads for each layer and parameter, ``(heads,)``."""
        assert options.start is not None
        return options.planned_tensors(self.name, anatomy, options.start)

    def learned_per_head(self, options: Mapping[str, Any]) -> int:
        """The parameters of the form."""
        return len(FORMS[options["form"]].parameters)

    def identity(self, options: SSMaxOptions) -> str | None:
        """Where the converted model equals the source: if the multiplier starts at exactly 1."""
        if options.calibration is not None:
            return None
        if options.form == "logn":
            return f"n <= {options.reference_length}" if options.start in ({}, GAIN) else None
        return "everywhere" if options.identity is not None and options.start == options.identity else None

    def describe(self, options: SSMaxOptions) -> str:
        """Form, equation, N and start values."""
        form = FORMS[options.form]
        if options.calibration == PENDING:
            start = "values not calibrated yet"
        elif options.calibration is not None:
            start = f"values of calibration {options.calibration[:16]}"
        else:
            values = ", ".join(f"{name} = {value:.6g}" for name, value in (options.start or {}).items())
            start = f"start {values or 'none'}"
        reference = f", N = {options.reference_length}" if form.has_reference else ""
        outputs = ", outputs times a gain g" if options.outputs == "gain" else ""
        return f"form {options.form}, m(n) = {form.equation}{reference}{outputs}, {start}"

    def summarize_calibration(self, record: Mapping[str, Any]) -> CalibrationSummary:
        """What is gained and what it costs, and the multipliers by layer."""
        from surgery.operations.ssmax.summary import summarize

        return summarize(record)

    def calibration_passes(
        self,
        settings: SSMaxCalibrationSettings,
        options: Mapping[str, Any],
        anatomy: Anatomy,
        choices: int | None = None,
    ) -> list[tuple[int, float]]:
        """Gradients of the haystacks, and measuring each trial."""
        return settings.passes(settings.known_lengths(anatomy))

    def calibration_keeps_work(self) -> bool:
        """Gradients are kept; those of the first step serve every form."""
        return True

    def uncalibrated(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """With a mark in place of the hash of a calibration, and what is calibrated by default."""
        if given.get("start"):
            raise UsageError("start has no effect: the calibration chooses the start values", hint="Leave it out.")
        given = {**CALIBRATED, **given}
        check_can_calibrate(SSMaxOptions.model_validate(given))
        return {**given, "calibration": PENDING}

    def unfinished(self, options: SSMaxOptions) -> str | None:
        """A plan that was made in place of a calibration."""
        return "the plan shows shapes only: its numbers need a calibration" if options.calibration == PENDING else None

    def options_to_calibrate(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Form, outputs, N, layers and heads."""
        return {name: options[name] for name in _CALIBRATION_OPTIONS if options.get(name) is not None}

    def calibrated(self, given: Mapping[str, Any], calibration: Any) -> Mapping[str, Any]:
        """Every option that was given must be the one that was calibrated with."""
        own: dict[str, Any] = calibration.options()
        SSMaxOptions.check_given(given, own, form=own["form"], outputs=own["outputs"])
        return {**own, **SSMaxOptions.layer_word(given)}

    def known_start(self, options: Mapping[str, Any]) -> dict[str, float]:
        """None where a calibration chose the values, which differ by head."""
        return {} if options.get("calibration") is not None else super().known_start(options)

    def learned_numbers(
        self,
        modules: Sequence[Any],
        options: Mapping[str, Any],
        layers: tuple[int, ...],
        heads: tuple[int, ...],
        length: int,
    ) -> LearnedNumbers:
        """Add the multipliers at some n, and the heads with a negative multiplier."""
        from surgery.operations.ssmax.learned_numbers import read_multipliers

        return read_multipliers(modules, options, layers, heads, self.known_start(options), length)

    def warnings(self, options: SSMaxOptions, anatomy: Anatomy) -> tuple[str, ...]:
        """Cases in which the operation has less effect, or more, than a user may expect."""
        found = []
        by_n = options.layers if FORMS[options.form].has_reference else ()  # the others are the same for every n
        sliding = [index for index in by_n if anatomy.layers[int(index)].kind == "sliding"]
        if sliding:
            window = anatomy.layers[int(sliding[0])].window
            found.append(f"{len(sliding)} of the chosen layers slide: n saturates at their window of {window} keys")
        chunked = [index for index in by_n if anatomy.layers[int(index)].kind == "chunked"]
        if chunked:
            size = anatomy.layers[int(chunked[0])].window
            found.append(
                f"{len(chunked)} of the chosen layers are chunked: n starts again at every chunk of {size} keys"
            )
        capped = anatomy.layers[0].softcap
        if capped is not None:
            found.append(f"scores are soft-capped at {capped:g} after the multiplier, which limits its effect")
        if options.calibration == PENDING:
            found.append("this plan shows shapes only: a calibration will choose the numbers")
        elif options.calibration is None and self.identity(options) is None:
            found.append("the converted model differs from the source until it is trained (surgery finetune)")
        return tuple(found)

    def checks(self, checked: CheckedModel, options: SSMaxOptions) -> list[Check]:
        """For ``logn``, which has no parameter to change, check the effect with another N."""
        from surgery.operations.ssmax.verification import check_beyond_reference

        return [check_beyond_reference(checked)] if options.form == "logn" else []

    def head_factors(self, options: Mapping[str, Any]) -> HeadFactors | None:
        """The temperature of the forms without ln n, and the gain."""
        if options["form"] not in ("constant", "none"):
            return None
        return HeadFactors(
            queries=FORMS[options["form"]].parameters, outputs=tuple(GAIN) if options.get("outputs") == "gain" else ()
        )

    def changes_nothing(self, options: SSMaxOptions, values: Mapping[str, Sequence[float]]) -> bool:
        """Every head is at the start values of the identity."""
        own = options.identity
        if own is None or own.keys() != values.keys():
            return False
        return all(value == own[name] for name, found in values.items() for value in found)

    def effective_values(self, module: Any) -> tuple[Any, tuple[Any, ...]]:
        """The first parameter of the module, and another value of it."""
        _, parameter = next(iter(module.named_parameters(recurse=False)))
        return parameter, (parameter.detach() + 0.1,)

    def control_options(self, control: str, options: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """For `temperature`, one constant per head from 1, in place of what learns something of n; a gain stays."""
        if control != "temperature" or "scale" not in FORMS[options["form"]].parameters:
            return None
        kept = {name: options[name] for name in ("layers", "heads", "outputs") if options.get(name) is not None}
        own = SSMaxOptions(form="constant", **kept)
        return own.model_copy(update={"start": dict(own.identity or {})}).resolved()

    def check_sections(self, sections: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """``identity`` needs learned parameters."""
        if "identity" in sections and not (FORMS[options["form"]].parameters or options.get("outputs") == "gain"):
            raise PlanRefusedError(
                f"identity does nothing: the form {options['form']} has no learned parameter",
                hint="Leave identity out.",
            )

    def stage_hooks(
        self, model: nn.Module, modules: Mapping[int, Any], sections: Mapping[str, Any], layers: Collection[int]
    ) -> StageHooks | None:
        """The price of multipliers that leave 1."""
        if "identity" not in sections:
            return None
        from surgery.operations.ssmax.training import IdentityHooks

        chosen = {layer: module for layer, module in modules.items() if layer in layers}
        return IdentityHooks(chosen, sections["identity"]) if chosen else None

    def trial_candidates(self) -> tuple[TrialCandidate, ...]:
        """A temperature and a gain per head; and a temperature that changes with n, which must beat it."""
        return (
            TrialCandidate(
                "constant",
                "a temperature and a gain per head, without ln n",
                {"name": "ssmax", "form": "constant"},
                "answers",
            ),
            TrialCandidate(
                "bias",
                "a temperature per head that changes with ln n, and a gain",
                {"name": "ssmax", "form": "bias"},
                "answers",
                control="constant",
            ),
        )

    def trial_settings(self, length: int, effort: float) -> SSMaxCalibrationSettings:
        """Fewer haystacks."""
        most = SSMaxCalibrationSettings()
        return SSMaxCalibrationSettings(lengths=(length // 4, length), haystacks=max(8, round(effort * most.haystacks)))

    def trial_passes(
        self, settings: SSMaxCalibrationSettings, anatomy: Anatomy, number: int
    ) -> list[tuple[int, float]]:
        """The gradients of the first step serve every form."""
        lengths = settings.known_lengths(anatomy)
        return settings.guard_passes(lengths) if number else settings.passes(lengths)
