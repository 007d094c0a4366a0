"""The base class of operations: options, and the hooks by which other rooms use an operation.

To add an operation, write its folder beside this file and add one line to ``OPERATIONS``:

- ``options.py``: the schema, a subclass of :class:`OperationOptions` or :class:`HeadOptions`.
- ``operation.py``: a subclass of :class:`Operation`. It must give the class attributes without a default and the
  abstract methods; every other hook has a default without effect.
- the code that travels in a converted checkpoint, unless ``in_config_alone``.
- ``calibration/``, if ``calibrates``. It may import ``surgery.evaluation`` and ``surgery.loading``, and has a line in
  the second contract of import-linter in pyproject.toml. The rest of the folder imports neither, and torch inside
  functions only.

The hooks are grouped by their caller: plans, `surgery inspect` and `surgery verify` in this file, evaluation in
``measured.py``, a training in ``training.py``, a trial in ``tried.py``. A new operation writes only the hooks that it
needs.

No other room names an operation: it loops over ``OPERATIONS``, or looks up a name from a plan or config.json.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from surgery.anatomy import Anatomy, AttentionLayer, Family
from surgery.errors import PlanRefusedError
from surgery.flag import NO_FLAG, Flag
from surgery.operations.layer_numbers import HIGHEST, parse_layers
from surgery.operations.measured import MeasuredOperation
from surgery.operations.training import TrainableOperation
from surgery.operations.tried import TriedOperation

if TYPE_CHECKING:
    from surgery.operations.check import Check, CheckedModel

LayerWord = Literal["full", "sliding", "chunked", "all"]
Number = Annotated[int, Field(ge=0, le=HIGHEST)]
# The description of the field `layers`, also where an operation declares its own default.
LAYERS = "Layers: full, sliding, chunked, all, or numbers: 0-3,7."


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that an operation adds, stored as float32: name, shape, and one value, or a value for each element."""

    name: str
    shape: tuple[int, ...]
    start: float | tuple[float, ...]


class OperationOptions(BaseModel):
    """The options of every operation: its name, and the layers that it is applied to.

    The fields are the keys of a recipe and of config.json, and the flags of `surgery convert`: each is described once,
    here, with its spelling on the command line as a :class:`~surgery.flag.Flag`.
    """

    # Built at the first validation, because most commands that list the operations validate nothing.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    name: Annotated[str, NO_FLAG] = Field(description="The operation.")
    layers: LayerWord | tuple[Number, ...] = Field(default="full", description=LAYERS)

    @field_validator("layers", "heads", "keep_softmax", mode="before", check_fields=False)
    @classmethod
    def _numbers(cls, value: Any, info: ValidationInfo) -> Any:
        words = get_args(LayerWord) if info.field_name == "layers" else ()
        if isinstance(value, str) and value not in words:
            return parse_layers(value, words)
        return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value

    @field_validator("layers", "heads", "keep_softmax", check_fields=False)
    @classmethod
    def _in_order(cls, value: Any) -> Any:
        return tuple(sorted(set(value))) if isinstance(value, tuple) else value

    def resolved(self) -> dict[str, Any]:
        """As written into config.json."""
        return self.model_dump(mode="json")


class HeadOptions(OperationOptions):
    """Options of an operation that can be applied to single heads."""

    heads: Annotated[tuple[Number, ...] | None, Flag(absent="all")] = Field(
        default=None, description="Query heads in these layers: 0-3,7."
    )


@dataclass(frozen=True)
class CalibrationSummary:
    """What a calibration chose, in words.

    Attributes:
        facts: label -> text, for plans, cards and `surgery inspect`.
        columns, rows: a small table of the chosen values, one row for each layer.
        held_out_columns, held_out_rows: a table of the held-out passages, one row for each; the first cell is the name.
        remark: on the choice as a whole.
    """

    facts: Mapping[str, str]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    held_out_columns: tuple[str, ...]
    held_out_rows: tuple[tuple[str, ...], ...]
    remark: str


@dataclass(frozen=True)
class HeadFactors:
    """Parameters whose products are factors of each head, the same at every position.

    Attributes:
        queries: of the head's queries.
        outputs: of the head's output.
    """

    queries: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


class Operation(MeasuredOperation, TrainableOperation, TriedOperation, ABC):
    """One operation on attention.

    Class attributes:
        name: as in ``--to NAME``, in config.json and in the names of its modules and tensors.
        title: as written in text.
        summary: one line for listings.
        options: the schema.
        explanation: a paragraph for the card, in Markdown.
        in_config_alone: whether a change of config.json is enough, so that no code travels.
        calibrates: whether it has a ``calibration`` package, which chooses start values on texts.
        calibration_settings: the schema of the settings of that calibration.
        swept: allowed losses, in nats per token, that a sweep of its calibration measures by default.
        needed_options: options that `surgery convert` needs beside ``--to NAME``, as `surgery inspect` suggests them.
        multiplies_queries: its module returns the multiplier of the query, ``(batch, heads, queries, 1)``, which
            depends on the number of visible keys and on learned parameters alone. `surgery verify` compares it.
        test_ranges: ranges that `surgery verify` draws learned parameters from, by name, so that the operation has an
            effect; a parameter without a range is moved by a small random amount.
        constants: parameters that no check may change.
        initial_options: the schema of the options that `surgery new NAME` offers, where a model can have the operation
            from the start; each is an option of ``options`` too. None where `surgery new` has no such model.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[type[OperationOptions]]
    explanation: ClassVar[str]
    in_config_alone: ClassVar[bool] = False
    calibrates: ClassVar[bool] = False
    calibration_settings: ClassVar[type[BaseModel] | None] = None
    swept: ClassVar[tuple[float, ...]] = ()
    needed_options: ClassVar[str] = ""
    multiplies_queries: ClassVar[bool] = False
    test_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}
    constants: ClassVar[tuple[str, ...]] = ()
    initial_options: ClassVar[type[BaseModel] | None] = None

    # Where it applies. Called by: plans, `surgery inspect`, `surgery families`.

    def family_refusal(self, family: Family) -> str | None:
        """The reason why no model of this family can have the operation, or None."""
        return family.without.get(self.name)

    def family_caveats(self, family: Family) -> tuple[str, ...]:
        """Notes on the operation for models of this family; `surgery families` shows them."""
        return ()

    @property
    def code_package(self) -> str | None:
        """The package whose files travel in a checkpoint with this operation; None if config.json is enough."""
        return None if self.in_config_alone else f"{type(self).__module__.rpartition('.')[0]}.modeling"

    def refusal(self, layer: AttentionLayer) -> str | None:
        """The reason why this layer can never have the operation, or None."""
        if layer.kind == "none":
            return "this layer has no attention"
        if layer.kind in ("linear", "latent"):
            return f"{layer.kind} attention has no scores to operate on"
        return None

    def reason_to_skip(self, layer: AttentionLayer, anatomy: Anatomy) -> str | None:
        """The reason why the operation skips this layer by default, or None."""
        return self.refusal(layer)

    def option_to_include(self, layer: AttentionLayer, anatomy: Anatomy) -> str | None:
        """The option of `surgery convert` that includes a layer which is skipped by default.

        None where :meth:`reason_to_skip` cannot be overruled.
        """
        return None if self.refusal(layer) else f"--layers {layer.kind}"

    def check_family(self, family: Family) -> None:
        """Check that the operation can be applied to models of this family.

        Raises:
            PlanRefusedError: it cannot, with the reason.
        """
        if reason := self.family_refusal(family):
            raise PlanRefusedError(f"{self.name} cannot be applied to the family {family.model_type!r}: {reason}")

    def choose_layers(self, options: OperationOptions, anatomy: Anatomy) -> tuple[int, ...]:
        """Numbers of the layers that ``options.layers`` names.

        Raises:
            PlanRefusedError: no layer is left, or a layer does not exist or cannot have the operation.
        """
        layers = anatomy.layers
        if isinstance(options.layers, tuple):
            for index in options.layers:
                if index >= len(layers):
                    raise PlanRefusedError(f"layer {index} does not exist; the model has layers 0-{len(layers) - 1}")
                if reason := self.refusal(layers[index]):
                    raise PlanRefusedError(f"layer {index}: {reason}")
            if not options.layers:
                raise PlanRefusedError("no layer is chosen")
            return options.layers
        wanted = ("full", "sliding", "chunked") if options.layers == "all" else (options.layers,)
        chosen = tuple(layer.index for layer in layers if layer.kind in wanted and self.refusal(layer) is None)
        if not chosen:
            reasons = sorted(
                {self.reason_to_skip(layer, anatomy) or f"it is a {layer.kind}-attention layer" for layer in layers}
            )
            kinds = dict.fromkeys(layer.kind for layer in layers if self.refusal(layer) is None)
            words = [f"--layers {kind}" for kind in ("all", *kinds) if kind in get_args(LayerWord)] if kinds else []
            raise PlanRefusedError(
                f"nothing to convert: no layer of this model is chosen by --layers {options.layers} "
                f"({'; '.join(reasons)})",
                hint=f"Choose layers with {', '.join(words)} or by number, as --layers 0-3,7." if words else None,
            )
        return chosen

    def check_heads(self, options: HeadOptions, anatomy: Anatomy) -> None:
        """Check the chosen heads.

        Raises:
            PlanRefusedError: a head does not exist, or no head is chosen.
        """
        wrong = [head for head in options.heads or () if head >= anatomy.heads]
        if wrong:
            raise PlanRefusedError(f"head {wrong[0]} does not exist; the model has heads 0-{anatomy.heads - 1}")
        if options.heads == ():
            raise PlanRefusedError("no head is chosen")

    # What it does. Called by: plans and their execution. `options` are resolved from here on.

    @abstractmethod
    def resolve(self, options: Any, anatomy: Anatomy) -> OperationOptions:
        """Fill in every option without a value.

        Raises:
            PlanRefusedError: the operation cannot be applied with these options.
        """

    @abstractmethod
    def tensors(self, options: Any, anatomy: Anatomy) -> tuple[PlannedTensor, ...]:
        """The tensors that the operation adds, in order: the learned parameters, at their start values."""

    @abstractmethod
    def identity(self, options: Any) -> str | None:
        """The range in which the converted model equals the source: ``everywhere``, ``n <= 8192``, or None."""

    def config_changes(self, options: Any, anatomy: Anatomy) -> Mapping[str, Any]:
        """New values for keys of the family's own config.json; None removes a key."""
        return {}

    def conflict(self, options: Any, other: Operation, other_options: Any) -> str | None:
        """The reason why one plan cannot have these options and the options of another operation, or None.

        A plan calls this hook of both operations; one reason is enough.
        """
        return None

    def learned_per_head(self, options: Mapping[str, Any]) -> int:
        """Learned numbers in each head of a new model; options are those of ``initial_options``."""
        raise NotImplementedError(f"{self.name} has no initial options")

    def unfinished(self, options: Any) -> str | None:
        """The reason why a plan with these options can be shown but not executed yet, or None."""
        return None

    # What it says. Called by: plans, cards, `surgery inspect`.

    @abstractmethod
    def describe(self, options: Any) -> str:
        """The options in one line, for plans and cards; layers, heads and identity are shown beside it."""

    def explain(self, options: Any) -> str:
        """A paragraph on these options for the card, in Markdown."""
        return self.explanation

    def warnings(self, options: Any, anatomy: Anatomy) -> tuple[str, ...]:
        """Warnings for the user before the conversion."""
        return ()

    def facts(self, anatomy: Anatomy) -> Mapping[str, Any]:
        """The values that the operation would change, for `surgery inspect --json`; plain data."""
        return {}

    def facts_in_words(self, anatomy: Anatomy) -> Mapping[str, str]:
        """:meth:`facts` as rows of the table of `surgery inspect`: label -> text."""
        return {}

    # Its start values. Called by: `surgery convert` and plans, if ``calibrates``.

    def calibration_package(self) -> Any:
        """The package ``surgery.operations.NAME.calibration``: calibrate, read_calibration, sweep and their classes.

        It is loaded by its name on first use, because it stands above evaluation and needs torch.
        """
        return import_module(f"surgery.operations.{self.name}.calibration")

    def settings_of_calibration(self, given: Mapping[str, Any]) -> Any:
        """The settings of its calibration, from plain data.

        Raises:
            ValidationError: a setting is not valid.
        """
        if self.calibration_settings is None:
            raise NotImplementedError(f"{self.name} has no calibration")
        return self.calibration_settings.model_validate(dict(given))

    def summarize_calibration(self, record: Mapping[str, Any]) -> CalibrationSummary:
        """What a calibration chose, from its record as plain data."""
        raise NotImplementedError(f"{self.name} has no calibration")

    def calibration_passes(
        self, settings: Any, options: Mapping[str, Any], anatomy: Anatomy, choices: int | None = None
    ) -> list[tuple[int, float]] | None:
        """The forward passes of a calibration: tokens of a pass, and how many there are of it; for estimates of time.

        None where they are not known before it runs.

        Args:
            settings: of the schema ``calibration_settings``.
            options: of the operation, as they were given.
            anatomy: of the model.
            choices: that a sweep measures; None for a calibration.

        Raises:
            UsageError: a setting has no effect, or the model does not have the positions.
        """
        return None

    def calibration_keeps_work(self) -> bool:
        """Whether its calibration takes a folder (``work=``) that keeps finished steps: an interrupted one goes on."""
        return False

    def uncalibrated(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options that a user gave, marked so that a plan can be made before the calibration has run."""
        raise NotImplementedError(f"{self.name} has no calibration")

    def options_to_calibrate(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The resolved options that a calibration depends on."""
        raise NotImplementedError(f"{self.name} has no calibration")

    def calibrated(self, given: Mapping[str, Any], calibration: Any) -> Mapping[str, Any]:
        """The options that a user gave, with the values of a calibration.

        Raises:
            UsageError: an option contradicts the calibration.
            ValidationError: an option is not valid.
        """
        raise NotImplementedError(f"{self.name} has no calibration")

    # The converted model in memory. Called by: `loading`, `surgery verify`.

    def source_modules(self, model: Any) -> Mapping[str, Any]:
        """Modules that make the converted model behave as the source, by the path at which they belong.

        Only for an operation ``in_config_alone``. Another one is switched off by ``enabled = False`` on its modules.
        """
        return {}

    def checks(self, checked: CheckedModel, options: Any) -> list[Check]:
        """The operation's own checks, for `surgery verify`; others apply to every operation."""
        return []

    def head_factors(self, options: Mapping[str, Any]) -> HeadFactors | None:
        """The constants of each head, if the operation is nothing else: it can be written into the weights.

        Args:
            options: of the operation, from config.json.
        """
        return None

    def changes_nothing(self, options: Any, values: Mapping[str, Sequence[float]]) -> bool:
        """Whether a layer with these learned parameters computes exactly what it did before, at every length.

        `surgery merge` drops such an operation.

        Args:
            options: of the operation.
            values: of each tensor of the layer's module, one for each chosen head.
        """
        return False

    def effective_values(self, module: Any) -> tuple[Any, tuple[Any, ...]]:
        """A learned parameter of one of its modules, and test values; at least one must change the logits.

        `surgery verify` sets the values one after the other to prove that the layer's operation has an effect. Only
        for an operation with learned parameters.
        """
        raise NotImplementedError(f"{self.name} has no learned parameters")
