"""The options of a stage as transformers' Trainer takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from surgery.errors import UsageError
from surgery.loading import pick_device
from surgery.training.options import TrainingOptions


def training_arguments(
    options: TrainingOptions, folder: Path, steps: int, device: str, stage: int = 0
) -> TrainingArguments:
    """A stage's options as transformers' Trainer takes them.

    Args:
        options: of the stage.
        folder: for its checkpoints.
        steps: optimizer steps of the stage.
        device: auto, cpu, cuda or mps.
        stage: its number; each stage has a seed of its own.

    Raises:
        UsageError: Trainer does not take the device, or a tracker is not installed.
    """
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise UsageError(
            f"--device {device}: training runs on auto, cpu, cuda or mps",
            hint="Set CUDA_VISIBLE_DEVICES to choose one of several GPUs.",
        )
    on_cpu = pick_device(device).type == "cpu"
    if options.precision == "bfloat16-mixed" and not on_cpu and not is_torch_bf16_gpu_available():
        raise UsageError(
            "precision bfloat16-mixed: this device has no bfloat16", hint="Set precision to float32, or --device cpu."
        )
    _check_trackers(options.report_to)
    optimizer = options.optimizer
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=on_cpu,
        max_steps=steps,
        per_device_train_batch_size=options.batch.sequences,
        gradient_accumulation_steps=options.batch.accumulation,
        lr_scheduler_type="constant_with_warmup" if optimizer.schedule == "constant" else optimizer.schedule,
        warmup_steps=optimizer.warmup,
        max_grad_norm=optimizer.clip,
        bf16=options.precision == "bfloat16-mixed",
        seed=options.seed + stage,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would replace a NaN by the average
        eval_strategy="steps" if options.evaluation.every else "no",
        eval_steps=options.evaluation.every or None,
        save_strategy="steps",
        save_steps=options.checkpoints.every,
        save_total_limit=None,  # `TrainingFolder.rotate` does it, after the marker
        train_sampling_strategy="sequential",  # rows come in the order in which they were drawn
        report_to=list(options.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu and torch.cuda.is_available(),
        optim="adamw_torch",
    )
    # Several GPUs in one process would mean DataParallel; `torchrun` is the way to use them.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _check_trackers(names: Sequence[str]) -> None:
    from transformers.integrations import get_available_reporting_integrations

    available = get_available_reporting_integrations()
    missing = [name for name in names if name not in available]
    if missing:
        raise UsageError(
            f"report_to: {missing[0]!r} is not an installed tracker",
            hint=f"Installed: {', '.join(available) or 'none'}. The local log.jsonl is always written.",
        )
