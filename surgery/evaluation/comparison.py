"""``evaluate``: what did the surgery do to the loss, position by position?"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from surgery.checkpoint import Source, resolve
from surgery.data import Document, read_documents
from surgery.errors import SurgeryError, UsageError
from surgery.evaluation.passages import Passage, cut_passages, fingerprint
from surgery.evaluation.results import DataUse, EvaluationResult, LearnedNumbers, ModelUse
from surgery.evaluation.statistics import INTERVAL, MARGIN, Sample, check_edges, conclude, default_edges
from surgery.loading import RunOptions, load_model, load_tokenizer

if TYPE_CHECKING:
    import torch

OnProgress = Callable[[int, int, str], None]

FEW_SEQUENCES = 6


def evaluate(
    model: str | Path,
    *,
    against: str | Path | None = None,
    text: Sequence[str | Path],
    length: int = 4096,
    documents: int | None = None,
    buckets: Sequence[int] | None = None,
    margin: float = MARGIN,
    run: RunOptions | None = None,
    on_progress: OnProgress | None = None,
) -> EvaluationResult:
    """Measure the next-token loss of a model by position, and the paired difference to its base.

    Both models see the same tokens, one model after the other, so that only one is in memory.

    Args:
        model: a folder or hub id; converted or not.
        against: the base to compare with, a folder or hub id.
        text: files, folders and globs of UTF-8 text. Documents are never joined.
        length: tokens per sequence. Shorter texts are measured as far as they go, and the result says so.
        documents: measure at most this many sequences, taken from as many texts as possible.
        buckets: most tokens seen in each bucket, rising; by default powers of two from 64.
        margin: change of the loss, in nats per token, that still counts as kept.
        run: device, dtype, batch size and attention backend; the same for both models.
        on_progress: called with tokens done, tokens in all, and what is being done.

    Raises:
        UsageError: no text, texts too short, or two models whose tokenizers cut the texts differently.
        CheckpointError: a model or tokenizer cannot be loaded.
        SurgeryError: a loss is not finite, or memory runs out.
    """
    run = run or RunOptions()
    if length < 2:
        raise UsageError(f"--length {length}: a next token needs at least 2 tokens.")
    if documents is not None and documents < 1:
        raise UsageError(f"--documents {documents}: at least one sequence is needed.")
    if buckets is not None:
        check_edges(buckets, length)
    texts = read_documents([text] if isinstance(text, str | Path) else text)
    sources = [resolve(name) for name in (model, against) if name is not None]
    passages, data = _cut(sources, texts, length, documents, run)

    edges = default_edges(data.longest) if buckets is None else check_edges(buckets, data.longest)
    progress = _Progress(on_progress, total=len(sources) * sum(len(passage.tokens) for passage in passages))
    measured = [_measure(source, passages, run, data.length, progress) for source in sources]
    sample = Sample(measured[0].losses, measured[1].losses if against is not None else None)

    starts = (1, *(edge + 1 for edge in edges))
    ranges = [(first, last) for first, last in zip(starts, edges, strict=False) if first <= last]
    found = tuple(bucket for first, last in ranges if (bucket := sample.bucket(first, last, margin)) is not None)
    overall = sample.bucket(1, data.longest - 1, margin)
    assert overall is not None
    return EvaluationResult(
        model=measured[0].use,
        against=measured[1].use if against is not None else None,
        data=data,
        overall=overall,
        buckets=found,
        curve=sample.curve(data.longest),
        interval=INTERVAL,
        verdict=conclude(overall, found, margin) if against is not None else None,
        warnings=_warnings(data, [part.use for part in measured], documents),
    )


@dataclass(frozen=True)
class _Measured:
    use: ModelUse
    losses: list[NDArray[np.float64]]


class _Progress:
    def __init__(self, callback: OnProgress | None, total: int) -> None:
        self.callback, self.total, self.done = callback, total, 0

    def __call__(self, label: str, tokens: int = 0) -> None:
        self.done += tokens
        if self.callback is not None:
            self.callback(self.done, self.total, label)


def _cut(
    sources: list[Source], texts: list[Document], length: int, limit: int | None, run: RunOptions
) -> tuple[list[Passage], DataUse]:
    """Sequences for the first model; every other model's tokenizer must cut the texts into the same ones."""
    cuts = []
    for source in sources:
        tokenizer = load_tokenizer(source.folder, trust_remote_code=run.trust_remote_code)
        cuts.append(cut_passages(texts, tokenizer, length=length, limit=limit))
    passages, data = cuts[0]
    for source, (others, _) in zip(sources[1:], cuts[1:], strict=True):
        if fingerprint(others) != data.fingerprint:
            raise UsageError(
                f"the tokenizers of {sources[0].name} and {source.name} cut these texts into different tokens, "
                "so their losses per token cannot be compared.",
                hint="Compare with the model that this one was made from.",
            )
    return passages, data


def _measure(source: Source, passages: list[Passage], run: RunOptions, length: int, progress: _Progress) -> _Measured:
    progress(f"loading {source.name}")
    model = load_model(source.folder, run)
    losses: list[NDArray[np.float64]] = []
    began = time.perf_counter()
    for batch in _batches(passages, run.batch_size):
        losses += _losses(model, batch, source.name)
        progress(f"loss of {source.name}", sum(len(passage.tokens) for passage in batch))
    seconds = time.perf_counter() - began
    use = _describe(model, source, length, sum(len(passage.tokens) for passage in passages) / seconds, seconds)
    del model
    _free_memory()
    return _Measured(use, losses)


def _losses(model: Any, batch: list[Passage], name: str) -> list[NDArray[np.float64]]:
    import torch

    from surgery.evaluation.losses import token_losses

    input_ids = torch.tensor([passage.tokens for passage in batch], device=model.device)
    try:
        losses = token_losses(model, input_ids).double().numpy()
    except torch.OutOfMemoryError as error:
        raise SurgeryError(
            f"{name}: {len(batch)} sequences of {input_ids.shape[1]} tokens do not fit in the device's memory.",
            hint="Give a smaller --batch-size or --length, or --dtype bfloat16.",
        ) from error
    except IndexError as error:
        raise SurgeryError(
            f"{name}: the model cannot run {input_ids.shape[1]} tokens: {error}",
            hint="Its table of positions or of embeddings ends before; give a smaller --length.",
        ) from error
    for passage, row in zip(batch, losses, strict=True):
        _check_finite(row, passage, name)
    return list(losses)


def _check_finite(losses: NDArray[np.float64], passage: Passage, name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if not bad.size:
        return
    breaks = np.flatnonzero(np.diff(bad) > 1)
    starts, ends = bad[[0, *(breaks + 1)]] + 1, bad[[*breaks, -1]] + 1
    shown = ", ".join(
        str(first) if first == last else f"{first}-{last}" for first, last in zip(starts[:5], ends[:5], strict=True)
    )
    more = f" and {len(starts) - 5} more ranges" if len(starts) > 5 else ""
    raise SurgeryError(
        f"{name}: the loss is not a finite number at {bad.size} of {losses.size} positions of a sequence of "
        f"{passage.document}: positions {shown}{more}.",
        hint="`surgery verify` looks for NaN in the weights; float16 overflows in some models, so try --dtype float32.",
    )


def _batches(passages: list[Passage], size: int) -> list[list[Passage]]:
    """Neighbours of equal length together: without padding there is nothing to mask and nothing to get wrong."""
    batches: list[list[Passage]] = []
    for passage in passages:
        last = batches[-1] if batches else []
        if last and len(last) < size and len(last[0].tokens) == len(passage.tokens):
            last.append(passage)
        else:
            batches.append([passage])
    return batches


def _describe(model: Any, source: Source, length: int, rate: float, seconds: float) -> ModelUse:
    from surgery.evaluation.learned import learned_numbers

    config = model.config.get_text_config()
    block = getattr(model.config, "surgery", None) or {}
    learned: tuple[LearnedNumbers, ...] = learned_numbers(model, length)
    plan = next((block[key] for key in ("plan_hash", "plan_sha256", "plan") if isinstance(block.get(key), str)), None)
    trained = getattr(config, "max_position_embeddings", None)
    return ModelUse(
        name=source.name,
        commit=source.commit,
        model_type=model.config.model_type,
        parameters=model.num_parameters(),
        trained_length=int(trained) if trained else None,
        dtype=str(model.dtype).removeprefix("torch."),
        device=_device_name(model.device),
        attn_implementation=str(model.config._attn_implementation),
        tokens_per_second=rate,
        seconds=seconds,
        plan=plan,
        operations=tuple(
            " ".join(str(options[key]) for key in ("name", "form") if key in options)
            for options in block.get("operations", ())
        ),
        learned=learned,
    )


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _warnings(data: DataUse, models: list[ModelUse], limit: int | None) -> tuple[str, ...]:
    found = []
    if data.longest < data.length:
        found.append(
            f"No text fills {data.length} tokens; the longest sequence has {data.longest}, and nothing is known beyond."
        )
    for use in models:
        if use.trained_length is not None and data.longest > use.trained_length:
            found.append(
                f"{use.name} was made for {use.trained_length} positions; "
                f"sequences of {data.longest} tokens go beyond them."
            )
    if data.sequences < FEW_SEQUENCES:
        several = f"{data.sequences} sequences give intervals that are too narrow"
        found.append(f"{several if data.sequences > 1 else 'One sequence gives no interval'}; measure more text.")
    if limit is not None and data.sequences == limit and (data.left_out or data.unread):
        found.append(f"At most {limit} sequences were asked for; the texts hold more.")
    return tuple(found)
