"""The hooks of the RoPE change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surgery.anatomy import Anatomy, AttentionLayer, Family, Rope
from surgery.anatomy.rope import LOCAL_THETA_KEY, THETA_KEYS
from surgery.errors import PlanRefusedError, UsageError
from surgery.operations.base import Operation, PlannedTensor
from surgery.operations.rope.frequencies import ORIGINAL_LENGTH_KEY, changed_parameters, yarn_attention_factor
from surgery.operations.rope.options import TYPES, RopeOptions

if TYPE_CHECKING:
    from surgery.operations.check import Check, CheckedModel

# Keys that transformers copies into rope_parameters or prefers to it, so a change must remove them.
_OLD_KEYS = ("rope_scaling", LOCAL_THETA_KEY, *THETA_KEYS, "rotary_pct")


class RopeOperation(Operation):
    """Changes the frequencies of the rotary positions and max_position_embeddings."""

    name = "rope"
    title = "RoPE"
    summary = "rotary positions for longer texts (YaRN, NTK, linear, another theta), in config.json only"
    options = RopeOptions
    explanation = (
        "The frequencies of the rotary positions change, and max_position_embeddings is multiplied by the factor. The "
        "model was not trained at these positions: measure it there. A short training usually helps."
    )
    in_config_alone = True
    extends_positions = True

    def family_refusal(self, family: Family) -> str | None:
        """Also refuse a family without rotary positions, and a family that is not in the table."""
        if family.unverified:
            return "the positions of an unverified family cannot be changed"
        return super().family_refusal(family) or ("it has no rotary positions" if family.rope == "none" else None)

    def reason_to_skip(self, layer: AttentionLayer, anatomy: Anatomy) -> str | None:
        """Skip a model without RoPE, a RoPE that is already scaled, and sliding layers with their own RoPE."""
        rope = _rope_of(layer, anatomy)
        if rope is None:
            return "the family has no rotary positions"
        if any(done.get("name") == self.name for done in anatomy.operations):
            return "already changed"
        if reason := self.refusal(layer):
            return reason
        if rope.label == "sliding_attention":
            return f"sliding layers have their own RoPE, theta {rope.theta:g}"
        if rope.type != "default":
            return f"already scaled ({rope.type})"
        if _slides_throughout(anatomy):
            return f"every layer slides, with a window of {layer.window} keys"
        return None

    def option_to_include(self, layer: AttentionLayer, anatomy: Anatomy) -> str | None:
        """The options for sliding layers, for a RoPE that all layers share, and for a RoPE that is already scaled."""
        rope = _rope_of(layer, anatomy)
        if rope is None or self.refusal(layer) or any(done.get("name") == self.name for done in anatomy.operations):
            return None
        found = []
        if rope.label == "sliding_attention":
            found.append("--layers sliding")
        elif _slides_throughout(anatomy):
            found.append("--layers all")
        if rope.type != "default":
            found.append("--replace")
        return " ".join(found) or None

    def resolve(self, options: RopeOptions, anatomy: Anatomy) -> RopeOptions:
        """Check that the change is possible; fill in layers, default values, and the values before the change."""
        if options.before is not None:
            raise UsageError("rope: the plan sets before; leave it out")
        if not anatomy.ropes:
            raise PlanRefusedError(f"the family {anatomy.family.model_type!r} has no rotary positions to change")
        target = TYPES[options.type][0]
        if target not in anatomy.family.rope_types:
            usable = [name for name, (kind, _) in TYPES.items() if kind in anatomy.family.rope_types]
            raise PlanRefusedError(
                f"transformers' class of {anatomy.family.model_type!r} does not support RoPE of type {target!r}",
                hint=f"Use --type {' or --type '.join(usable)}.",
            )
        chosen = self._chosen(options, anatomy)
        length = self._original_length(options, chosen, anatomy)
        if (length * options.factor) % 1:
            raise PlanRefusedError(
                f"{length} positions times {options.factor:g} is not a whole number",
                hint=f"Pass for example --factor {round(length * options.factor) / length!r}.",
            )
        if options.type == "ntk" and any(rope.dim <= 2 for rope in chosen):
            raise PlanRefusedError("NTK needs more than one pair of rotated dimensions", hint="Use --type linear.")
        before = {
            "max_position_embeddings": anatomy.positions,
            "rope_parameters": _as_written({rope.label: dict(rope.parameters) for rope in anatomy.ropes}),
        }
        yarn = options.type == "yarn"
        return options.model_copy(
            update={
                "layers": tuple(sorted(layer for rope in chosen for layer in rope.layers)),
                "original_length": length,
                "attention_factor": (options.attention_factor or yarn_attention_factor(options.factor))
                if yarn
                else None,
                "beta_fast": (options.beta_fast or 32.0) if yarn else None,
                "beta_slow": (options.beta_slow or 1.0) if yarn else None,
                "before": before,
            }
        )

    def tensors(self, options: RopeOptions, anatomy: Anatomy) -> tuple[PlannedTensor, ...]:
        """No tensors."""
        return ()

    def identity(self, options: RopeOptions) -> str | None:
        """None: only the first position stays as it was."""
        return None

    def describe(self, options: RopeOptions) -> str:
        """Type, factor, and the parameters of the type."""
        before = (options.before or {}).get("max_position_embeddings")
        after = round((options.original_length or 0) * options.factor)
        numbers = {
            "theta": options.theta,
            "theta times": options.theta_factor,
            "attention factor": options.attention_factor,
            "beta fast": options.beta_fast,
            "beta slow": options.beta_slow,
        }
        given = "".join(f", {name} {value:.6g}" for name, value in numbers.items() if value is not None)
        return f"{options.type}, positions {before} to {after} (x {options.factor:g}){given}"

    def config_changes(self, options: RopeOptions, anatomy: Anatomy) -> Mapping[str, Any]:
        """``rope_parameters`` as transformers 5 writes them; the source's older keys are removed."""
        assert options.original_length is not None
        parameters = {
            rope.label: changed_parameters(options, rope)
            if set(rope.layers) <= set(options.layers)
            else rope.parameters
            for rope in anatomy.ropes
        }
        removed = [key for key in _OLD_KEYS if key in anatomy.config]
        # transformers prefers a key of this name at the top level, which only Phi-3 has, to the one in rope_parameters.
        if options.type == "yarn" and ORIGINAL_LENGTH_KEY in anatomy.config:
            removed.append(ORIGINAL_LENGTH_KEY)
        return {
            "max_position_embeddings": round(options.original_length * options.factor),
            "rope_parameters": _as_written(parameters),
            **dict.fromkeys(removed),
        }

    def facts(self, anatomy: Anatomy) -> Mapping[str, Any]:
        """The parameters of each RoPE, by the kind of layer that uses it."""
        return {self.name: {rope.label or "all": dict(rope.parameters) for rope in anatomy.ropes}}

    def facts_in_words(self, anatomy: Anatomy) -> Mapping[str, str]:
        """Type, factor and theta of each RoPE."""
        return {self.name: "; ".join(map(_in_words, anatomy.ropes)) or "no rotary positions"}

    def source_modules(self, model: Any) -> Mapping[str, Any]:
        """The modules that compute cosine and sine, with the parameters before the change."""
        from surgery.operations.rope.modules import source_modules

        return source_modules(model)

    def checks(self, checked: CheckedModel, options: RopeOptions) -> list[Check]:
        """The frequencies of the loaded model, and their effect on the logits."""
        from surgery.operations.rope.verification import check_effect, check_frequencies

        return [check_frequencies(checked, options), check_effect(checked)]

    def warnings(self, options: RopeOptions, anatomy: Anatomy) -> tuple[str, ...]:
        """Cases in which the change has more or less effect than a user may expect."""
        found = ["the converted model differs from the source at every length, also below the trained length"]
        sliding = [layer for layer in anatomy.layers if layer.kind == "sliding" and layer.index in options.layers]
        if sliding and len(anatomy.ropes) == 1:
            found.append(f"{len(sliding)} sliding layers share this RoPE, so it changes for them too")
        positions = round((options.original_length or 0) * options.factor)
        if positions < anatomy.positions:
            found.append(f"the source has {anatomy.positions} positions, the converted model {positions}")
        replaced = sorted({rope.type for rope in anatomy.ropes if rope.type != "default"})
        if options.replace and replaced:
            found.append(f"the source was trained with its own scaling ({', '.join(replaced)}), which is replaced")
        return tuple(found)

    def _chosen(self, options: RopeOptions, anatomy: Anatomy) -> list[Rope]:
        """The RoPEs of the chosen layers; all layers that share a RoPE must be chosen, or none."""
        shared = anatomy.ropes[0].label is None
        if options.layers == "all" or (options.layers == "full" and shared):
            chosen = list(anatomy.ropes)
            if options.layers == "full" and _slides_throughout(anatomy):
                window = anatomy.layers[0].window
                raise PlanRefusedError(
                    f"nothing to convert: every layer slides, with a window of {window} keys",
                    hint="Pass --layers all to change RoPE all the same.",
                )
        elif isinstance(options.layers, tuple):
            wanted = set(options.layers)
            chosen = [rope for rope in anatomy.ropes if set(rope.layers) <= wanted]
            if wanted != {layer for rope in chosen for layer in rope.layers}:
                who = "all layers share one RoPE" if shared else "layers of one kind share their RoPE"
                raise PlanRefusedError(
                    f"{who}; it cannot change on only some of them",
                    hint="Use --layers all." if shared else "Use --layers full, --layers sliding or --layers all.",
                )
        else:
            chosen = [rope for rope in anatomy.ropes if rope.label == f"{options.layers}_attention"]
        if not chosen:
            raise PlanRefusedError(
                f"nothing to convert: no layer is chosen by --layers {options.layers}"
                + (", since all layers share one RoPE" if shared else ""),
                hint="Use --layers all.",
            )
        return chosen

    def _original_length(self, options: RopeOptions, chosen: list[Rope], anatomy: Anatomy) -> int:
        """The length that the factor multiplies: the trained length, or the length before a replaced scaling."""
        scaled = next((rope for rope in chosen if rope.type != "default"), None)
        if scaled is None:
            if options.replace:
                raise UsageError("--replace: the source has no RoPE scaling", hint="Leave it out.")
            return anatomy.positions
        if not options.replace:
            raise PlanRefusedError(
                f"the source already scales its positions ({scaled.type}), and two scalings cannot be combined",
                hint="Pass --replace to replace it; the factor then multiplies the length before that scaling.",
            )
        if options.original_length is not None:
            return options.original_length
        stated = scaled.parameters.get(ORIGINAL_LENGTH_KEY) or anatomy.config.get(ORIGINAL_LENGTH_KEY)
        if not isinstance(stated, int) or isinstance(stated, bool) or stated < 2:
            raise PlanRefusedError(
                f"config.json does not have the text length before its scaling ({scaled.type})",
                hint="Pass it, for example --original-length 8192.",
            )
        return stated

    def known_positions(self, options: Mapping[str, Any]) -> int:
        """The source's max_position_embeddings."""
        return int(options["before"]["max_position_embeddings"])

    def option_for_length(self, factor: float) -> str | None:
        """YaRN, which needs the least training."""
        return f"--to {self.name} --type yarn --factor {factor:g}"


def _in_words(rope: Rope) -> str:
    factor = rope.parameters.get("factor")
    return (
        (f"{rope.label}: " if rope.label else "")
        + rope.type
        + (f" x {factor:g}" if isinstance(factor, int | float) else "")
        + f", theta {rope.theta:g}"
    )


def _rope_of(layer: AttentionLayer, anatomy: Anatomy) -> Rope | None:
    return next((rope for rope in anatomy.ropes if layer.index in rope.layers), None)


def _slides_throughout(anatomy: Anatomy) -> bool:
    """Whether every layer slides, with the one RoPE that all of them share."""
    return anatomy.ropes[0].label is None and all(layer.kind == "sliding" for layer in anatomy.layers)


def _as_written(parameters: Mapping[str | None, Mapping[str, Any]]) -> dict[str, Any]:
    """The parameters by layer type, or without a layer type if all layers share them."""
    if None in parameters:
        return dict(parameters[None])
    return {str(label): dict(value) for label, value in parameters.items()}
