"""What a suite can say: one strict schema of the parts that are measured, and a suite by its name or file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from surgery.errors import UsageError
from surgery.evaluation.statistics import check_edges
from surgery.schemas import Keys, Problem, Schema, SchemaError, load_yaml, problems_of, read_text
from surgery.schemas.shipped import shipped_file

DEFAULT = "quick"
Length = Annotated[int, Field(ge=2, le=2**24)]
Depth = Annotated[float, Field(ge=0, le=1)]

_CHUNK = Field(default=2048, ge=16, description="Tokens per forward pass; a longer sequence goes through in chunks.")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _TextPart(_Part):
    """A part that reads the texts."""

    length: Length = Field(default=4096, description="Tokens per sequence.")
    documents: PositiveInt | None = Field(
        default=8, description="At most so many sequences, taken from as many texts as possible; null takes all."
    )
    chunk: int = _CHUNK


class LossPart(_TextPart):
    """Loss of each next token by the number of tokens seen, on long documents."""

    kind: Literal["loss"]
    buckets: list[PositiveInt] | None = Field(
        default=None, description="Most tokens seen in each bucket, rising; powers of two from 64 by default."
    )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.buckets is not None:
            try:
                check_edges(self.buckets, self.length)
            except UsageError as error:
                raise ValueError(error.message) from error
        return self


class SlidingPart(_TextPart):
    """Perplexity by a window that slides over whole documents: each token is predicted from about a full window."""

    kind: Literal["sliding"]
    length: Length = Field(default=1024, description="Tokens of the window.")
    documents: PositiveInt | None = Field(default=4, description="At most so many texts; null takes all.")
    stride: PositiveInt = Field(default=512, description="Tokens by which the window moves on.")
    tokens: PositiveInt = Field(default=4096, description="Most tokens of one text.")

    @model_validator(mode="after")
    def _overlapping(self) -> Self:
        if self.stride >= self.length:
            raise ValueError(f"stride {self.stride} must be below length {self.length}, or tokens are left out")
        return self


class RetrievalPart(_Part):
    """Finding something again: at which distance and depth does the model still retrieve it?"""

    kind: Literal["retrieval"]
    task: Literal["abcdigits", "needle", "passkey", "induction"] = Field(description="What is to be found.")
    lengths: list[Length] = Field(min_length=1, description="Tokens of prompt and answer.")
    depths: list[Depth] = Field(
        default=[0.0, 0.25, 0.5, 0.75, 1.0], min_length=1, description="Where it stands: 0 is the start of the text."
    )
    samples: PositiveInt = Field(default=4, description="Prompts for each length and depth.")
    needles: PositiveInt | None = Field(
        default=None, description="Of task needle: how many are hidden; one is asked for. 3 by default."
    )
    seed: int = Field(default=0, ge=0, description="Of the random prompts.")
    chunk: int = _CHUNK

    @model_validator(mode="after")
    def _needles_of_needle(self) -> Self:
        if self.needles is not None and self.task != "needle":
            raise ValueError(f"needles does nothing with task {self.task}; it belongs to task needle")
        return self


class AttentionPart(_TextPart):
    """Statistics of the attention weights by layer, head and n: the greatest weight, entropy, mass on first tokens."""

    kind: Literal["attention"]
    length: Length = Field(default=1024, description="Tokens per sequence.")
    documents: PositiveInt | None = Field(default=2, description="At most so many sequences; null takes all.")
    first_tokens: PositiveInt = Field(default=4, description="Mass on so many first tokens is summed up.")
    block: PositiveInt = Field(default=64, description="Queries and keys of a block, of which shares are rejected.")


class TasksPart(_Part):
    """Short tasks of lm-evaluation-harness (extra ``eval``)."""

    kind: Literal["tasks"]
    names: list[str] = Field(min_length=1, description="Tasks, as lm-eval calls them.")
    definitions: str | None = Field(default=None, description="Folder with task definitions of your own.")
    limit: PositiveInt | None = Field(default=None, description="Examples of each task; all by default.")
    shots: int | None = Field(default=None, ge=0, description="Examples in the prompt; as the task says by default.")


class SpeedPart(_Part):
    """Prefill and decoding rates, the model and its base in turn."""

    kind: Literal["speed"]
    prefill: list[PositiveInt] = Field(default=[1024], min_length=1, description="Tokens of each prefill timed.")
    decode_after: PositiveInt = Field(default=1024, description="Tokens in the cache before decoding.")
    decode_tokens: PositiveInt = Field(default=16, description="Tokens decoded, one by one.")
    repeats: int = Field(default=5, ge=3, description="Turns; medians over them.")


Part = LossPart | SlidingPart | RetrievalPart | AttentionPart | TasksPart | SpeedPart
TEXT_PARTS = (LossPart, SlidingPart, AttentionPart)


class Suite(_Part):
    """A list of parts to measure."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Results are filed under it.")
    text: list[str] = Field(default=[], description="Text files, folders and globs; --text wins over them.")
    margin: PositiveFloat = Field(
        default=0.005, description="Change of the loss, in nats per token, that still counts as kept."
    )
    score_margin: PositiveFloat = Field(
        default=0.01, description="Change of a score between 0 and 1 that still counts as kept."
    )
    parts: list[Annotated[Part, Field(discriminator="kind")]] = Field(min_length=1, description="What is measured.")

    @property
    def reads_text(self) -> bool:
        """Whether any part needs texts."""
        return any(isinstance(part, TEXT_PARTS) for part in self.parts)

    def changed(self, *, length: int | None = None, documents: int | None = None) -> Suite:
        """The suite with another length and number of sequences for every part that reads texts.

        Raises:
            UsageError: no part reads texts, or a part cannot be so short.
        """
        given = {name: value for name, value in (("length", length), ("documents", documents)) if value is not None}
        if not given:
            return self
        if not self.reads_text:
            raise UsageError(f"--{next(iter(given))} does nothing: no part of the suite {self.name} reads texts.")
        # Statistics of attention take one document where a loss takes many: that number stays.
        parts = [
            _with(part, given if not isinstance(part, AttentionPart) else {**given, "documents": part.documents})
            if isinstance(part, TEXT_PARTS)
            else part
            for part in self.parts
        ]
        return self.model_copy(update={"parts": parts})


class SuiteError(SchemaError):
    """A suite is not valid; ``problems`` has every fault that was found (exit code 2)."""


_SCHEMA = Schema(
    noun="suite",
    root=Suite,
    error=SuiteError,
    example="name: my-suite",
    finding="`surgery evaluate --list-suites` names those that ship.",
    repeated=("parts",),
)


def read_suite(suite: str | Path | Suite | Mapping[str, Any]) -> Suite:
    """A suite that ships, by its name; one's own, by its file; or one already in Python.

    Raises:
        SuiteError: it is not a valid suite; the error lists every fault.
        UsageError: there is no such suite or file.
    """
    if isinstance(suite, Suite):
        return suite
    lines: dict[Keys, int] = {}
    problems: list[Problem] = []
    if isinstance(suite, Mapping):
        name, data = "the suite", dict(suite)
    else:
        name = str(suite)
        is_file = Path(name).suffix in (".yaml", ".yml") or Path(name).exists()
        text = read_text(Path(name), _SCHEMA) if is_file else shipped_file("suites", name).text
        data = load_yaml(text, name, lines, problems, _SCHEMA)
    try:
        valid = Suite.model_validate(data)
    except ValidationError as error:
        problems += [problem for problem in problems_of(error, data, lines, _SCHEMA) if problem not in problems]
    if problems:
        raise SuiteError(name, sorted(problems, key=lambda problem: (problem.line is None, problem.line or 0)))
    return valid


def _with(part: Any, given: Mapping[str, int | None]) -> Any:
    own: dict[str, Any] = dict(given)
    if isinstance(part, SlidingPart) and "length" in own:
        own["stride"] = min(part.stride, max(1, own["length"] // 2))
    try:
        return type(part).model_validate({**part.model_dump(), **own})
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]) if first["loc"] else "--length"
        raise UsageError(f"{option} {first['input']}: {first['msg'].lower()}.") from error
