"""Options of an operation whose start values can come from a calibration: a value for each layer and head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import Field, model_validator

from surgery.anatomy import Anatomy
from surgery.errors import PlanRefusedError, UsageError
from surgery.flag import NO_FLAG
from surgery.operations.base import HeadOptions, LayerWord, PlannedTensor

Value = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
# For each layer and parameter, one value per chosen head.
Values = Mapping[int, Mapping[str, tuple[Value, ...]]]

# What a plan holds in place of a hash while its calibration has not been run.
PENDING = "pending"


class CalibratedOptions(HeadOptions):
    """Options with start values by layer and head, or with one start value of each parameter for all heads."""

    values: Annotated[Values | None, NO_FLAG] = Field(
        default=None,
        exclude=True,
        repr=False,
        description="Start values for each layer and head, from a calibration. They are stored in the tensors, not in "
        "config.json.",
    )
    calibration: Annotated[str | None, NO_FLAG] = Field(
        default=None, description="SHA-256 of the calibration that the values come from."
    )

    @property
    @abstractmethod
    def parameters(self) -> tuple[str, ...]:
        """Names of what the form learns, one value per head each."""

    @model_validator(mode="after")
    def _values_are_complete(self) -> CalibratedOptions:
        if self.values is not None and self.calibration is None:
            raise ValueError("values need the hash of the calibration that they come from")
        for layer, found in (self.values or {}).items():
            if sorted(found) != sorted(self.parameters):
                raise ValueError(
                    f"values of layer {layer} must have {', '.join(self.parameters)}, not {', '.join(found)}"
                )
        return self

    @classmethod
    def check_given(cls, given: Mapping[str, Any], calibrated: Mapping[str, Any], **others: Any) -> None:
        """Check that the options that a user gave are those of a calibration, or have been resolved in it.

        Args:
            given: what the user gave.
            calibrated: the options with the calibration's values.
            others: options that each of ``given`` needs beside it to be valid.

        Raises:
            UsageError: one differs.
        """
        resolved = cls.model_validate(calibrated).model_dump()
        for name, value in given.items():
            if name == "layers" and value in get_args(LayerWord):
                continue  # a plan resolves it; see `layer_word`
            wanted = cls.model_validate({**others, name: value})
            if name not in calibrated or getattr(wanted, name) != resolved[name]:
                raise UsageError(f"{name} {value!r} differs from the calibration", hint="Calibrate with it.")

    @staticmethod
    def layer_word(given: Mapping[str, Any]) -> dict[str, Any]:
        """The word that a user gave for the layers, in place of the numbers of a calibration; nothing if there is none.

        A plan resolves it, and :meth:`check_values` tells if it means other layers than the calibration's.
        """
        return {"layers": given["layers"]} if given.get("layers") in get_args(LayerWord) else {}

    def check_values(self, layers: Sequence[int], anatomy: Anatomy) -> None:
        """Check that the values are those of these layers and of the chosen heads.

        Raises:
            PlanRefusedError: they are not, or a calibration is named without its values.
        """
        if self.values is None:
            if self.calibration not in (None, PENDING):
                raise PlanRefusedError("options name a calibration without its values")
            return
        size = anatomy.heads if self.heads is None else len(self.heads)
        if sorted(self.values) != sorted(layers):
            raise PlanRefusedError(
                f"the calibration is for layers {sorted(self.values)}, but layers {list(layers)} are chosen",
                hint="Calibrate this model with these --layers: the file is of other layers, or of another model.",
            )
        for layer, found in self.values.items():
            wrong = [name for name in self.parameters if len(found[name]) != size]
            if wrong:
                raise PlanRefusedError(
                    f"the calibration holds {len(found[wrong[0]])} values of {wrong[0]} for layer {layer}, but "
                    f"{size} heads are chosen",
                    hint="Calibrate this model with these --heads: the file is of other heads, or of another model.",
                )

    def planned_tensors(
        self, operation: str, anatomy: Anatomy, start: Mapping[str, float], constants: Mapping[str, float] | None = None
    ) -> tuple[PlannedTensor, ...]:
        """One vector over the chosen heads for each layer and parameter, ``(heads,)``.

        Args:
            operation: its name.
            anatomy: of the source.
            start: value of each parameter where there is no calibration.
            constants: tensors beside the parameters, with one value for all heads.
        """
        size = anatomy.heads if self.heads is None else len(self.heads)
        found = []
        for layer in self.layers:
            assert isinstance(layer, int)
            values: Mapping[str, Any] = start if self.values is None else self.values[layer]
            starts = {**{name: values[name] for name in self.parameters}, **(constants or {})}
            module = f"{anatomy.layers[layer].module}.{operation}"
            found += [PlannedTensor(f"{module}.{name}", (size,), value) for name, value in starts.items()]
        return tuple(found)
